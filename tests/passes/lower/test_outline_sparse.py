"""Weights with the 2:4 pattern on CUDA: the operators that multiply without zeros, on codes and in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext
from qcompile.compiler.operators import DOMAIN
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.printer import print_model
from qcompile.compiler.recipe import Recipe, Step
from qcompile.compiler.targets import target_named
from qcompile.compiler.weight_pattern import is_sparse
from qcompile.errors import TargetError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.passes.lower.outline_sparse import OutlineSparse
from qcompile.runtime.ops.places import VARIABLE
from tests.golden import assert_golden
from tests.passes.harness import model_of
from tests.passes.int8 import Lowered, head, int8, normal
from tests.passes.quantize.test_zeros_kept import pruned
from tests.targets import cuda_stub

CUDA = target_named("cuda")
SAMPLES = [{"x": normal(2, 5, 32, seed=i)} for i in range(4)]
WEIGHTS = {
    "w": pruned(normal(32, 24) / 4),
    "b": normal(24),
    "v": pruned(normal(32, 16) / 4),
    "c": normal(1, 16),
    "dense": normal(32, 16) / 4,
    "narrow": pruned(normal(16, 8) / 4),
}
MODEL = (
    head()
    + """g (float[N, 5, 32] x) => (float[N, 5, 24] y, float[P, 16] z, float[N, 5, 16] t, float[P, 8] u)
    <int64[2] rows = {-1, 32}>
{
    m = MatMul (x, w)
    a = Add (m, b)
    y = Relu (a)
    e = Reshape (x, rows)
    g = Gemm (e, v, c)
    s = Sigmoid (g)
    z = Mul (g, s)
    t = MatMul (x, dense)
    u = MatMul (z, narrow)
}"""
)


def with_sparse(recipe: str) -> Recipe:
    found = find_recipe(recipe)
    return found.model_copy(update={"steps": (*found.steps, Step(name=OutlineSparse.name))})


def lowered(recipe: str, *options: str) -> Lowered:
    return int8(MODEL, WEIGHTS, SAMPLES, *options, target=CUDA, recipe=with_sparse(recipe))


def linear(result: Lowered) -> list[str]:
    return sorted(n.op_type for n in result.model.graph if n.domain == DOMAIN and n.op_type.startswith("Linear"))


def test_golden() -> None:
    rounded = {name: np.round(array * 8) for name, array in WEIGHTS.items()}
    texts = [""]

    def remember(done: object, now: ir.Model) -> None:
        texts.append(print_model(now, provenance=True).split("graph qcompile::")[0])

    run_pipeline(with_sparse("fp16").passes(), model_of(MODEL, rounded), CompileContext(CUDA, Path("unused")), remember)
    assert_golden("passes/outline-sparse", f"# before\n{texts[-2]}\n# after\n{texts[-1]}")


@pytest.mark.parametrize("recipe", ["int8-static", "int8-dynamic", "fp8-static", "fp8-dynamic"])
def test_codes_of_the_pattern_go_to_sparse_products(recipe: str) -> None:
    result, kind = lowered(recipe, "precision.dtype=float32"), "E4M3" if recipe.startswith("fp8") else "W8A8"
    assert linear(result) == sorted([f"Linear24{kind}BiasRelu", f"Linear24{kind}BiasSilu", *[f"Linear{kind}"] * 2])
    for node in result.model.graph:
        if node.op_type.startswith("Linear24"):
            codes = node.inputs[2].const_value.numpy()  # type: ignore[union-attr]
            assert is_sparse(codes, 1)
            assert np.count_nonzero(codes) > 0.45 * codes.size
    assert min(result.sqnr(name) for name in "yzt") > 25
    dense = lowered(recipe, "precision.dtype=float32", "outline.sparse=false")
    assert not [name for name in linear(dense) if name.startswith("Linear24")]
    for name in "yztu":
        np.testing.assert_array_equal(dense.plain[name], result.plain[name])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str) -> None:
    found = with_sparse("fp16").with_overrides([f"precision.dtype={dtype}"])
    model = model_of(MODEL, WEIGHTS)
    run_pipeline(found.passes(), model, CompileContext(CUDA, Path("unused")))
    suffix = {"float16": "Fp16", "bfloat16": "Bf16"}[dtype]
    calls = [n for n in model.graph if n.domain == DOMAIN]
    assert sorted(n.op_type for n in calls) == [f"Linear24BiasRelu{suffix}", f"Linear24BiasSilu{suffix}"]
    assert all(n.inputs[2].dtype is ir.DataType.FLOAT for n in calls if n.inputs[2] is not None)
    if dtype == "float16":
        result = lowered("fp16")
        assert min(result.sqnr(name) for name in "yztu") > 50


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_elsewhere_nothing_is_written(target: str) -> None:
    model, recipe = model_of(MODEL, WEIGHTS), with_sparse("fp16")
    run_pipeline(recipe.passes(), model, CompileContext(target_named(target), Path("unused")))
    assert not [n for n in model.graph if n.domain == DOMAIN]


@pytest.mark.cuda_stub
@pytest.mark.skipif(bool(cuda_stub.why_not()), reason=cuda_stub.why_not())
def test_kernels_take_them_on_the_device(tmp_path: Path) -> None:
    """ONNX Runtime's CUDA provider on a stub of CUDA, with the library of kernels."""
    try:
        library = str(cuda_stub.build_operators(tmp_path))
    except TargetError as error:
        pytest.skip(error.what)
    written: dict[str, list[str]] = {}
    for recipe in ("int8-static", "int8-dynamic", "fp16"):
        result = lowered(recipe)
        (tmp_path / f"{recipe}.onnx").write_bytes(result.data)
        written[f"{recipe}.onnx"] = linear(result)
    found: dict[str, Any] = cuda_stub.run(
        "tests.targets.cuda_artifacts", tmp_path, *(str(tmp_path / name) for name in written), **{VARIABLE: library}
    )
    for name, placement in found.items():
        kept = [n.removeprefix("qcompile::") for n in placement["free"]["nodes"] if n.startswith("qcompile::Linear")]
        assert sorted(kept) == written[name]
        assert len([n for n in kept if n.startswith("Linear24")]) == 2
