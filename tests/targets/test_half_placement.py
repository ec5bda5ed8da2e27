"""Half precision on the CUDA provider, placed on a stub: the table is true, and whole models stay on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from qcompile.compiler.provenance import PASS
from qcompile.compiler.targets import target_named
from qcompile.compiler.targets.half import CUDA_HALF
from qcompile.compiler.verification.prove import verify
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.runtime.providers import why_not_loaded
from tests.sweep.harness import compile_in_memory, session
from tests.targets import cuda_stub
from tests.targets.half_cases import CASES, TYPES
from tests.targets.half_models import MODELS, half_model

CASTS = {"encoder": 2, "decoder": 5, "convolutions": 2}
"""Casts that the pass adds, those at the inputs and outputs included."""

HANDLES_SHAPES = {"Shape", "Gather", "Unsqueeze", "Squeeze", "Concat", "Slice", "Cast"}
"""What the CUDA provider may leave to the CPU, where it is about shapes."""

stubbed = pytest.mark.skipif(bool(cuda_stub.why_not()), reason=cuda_stub.why_not())


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each small model in each half type."""
    folder, found = tmp_path_factory.mktemp("half"), {}
    for name, (_, sample) in MODELS.items():
        for dtype in TYPES.values():
            recipe = find_recipe("fp16").with_overrides([f"precision.dtype={dtype}"])
            done = compile_in_memory(half_model(name), [sample], recipe.passes(), target_named("cuda"))
            found[f"{name}-{dtype}"] = folder / f"{name}-{dtype}.onnx"
            found[f"{name}-{dtype}"].write_bytes(done.data)
    return found


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory, halves: dict[str, Path]) -> dict[str, Any]:
    """What `tests.targets.half_cases` prints when the stub stands in for CUDA."""
    found: dict[str, Any] = cuda_stub.run(
        "tests.targets.half_cases", tmp_path_factory.mktemp("cuda_stub"), *map(str, halves.values())
    )
    return found


def test_every_operator_of_the_table_has_a_case() -> None:
    assert set().union(*CUDA_HALF.kernels.values()) == set(CASES)


@pytest.mark.cuda_stub
@stubbed
@pytest.mark.parametrize("dtype", TYPES, ids=TYPES.values())
def test_the_table_lists_what_runs_on_the_device(dtype: ir.DataType, placed: dict[str, Any]) -> None:
    """And no less: what it leaves out of a type has no kernel there."""
    taken = {op for op in CASES if placed["operators"][f"{op}|{TYPES[dtype]}"] == "CUDAExecutionProvider"}
    assert taken == CUDA_HALF.kernels[dtype]


@pytest.mark.cuda_stub
@stubbed
@pytest.mark.parametrize("dtype", TYPES.values())
@pytest.mark.parametrize("name", MODELS)
def test_models_stay_on_the_device(name: str, dtype: str, placed: dict[str, Any]) -> None:
    found = placed["models"][f"{name}-{dtype}"]
    assert set(found.get("CPUExecutionProvider", ())) <= HANDLES_SHAPES
    assert not [op for op in found["executed"] if op.startswith("Memcpy")]
    if name == "decoder":
        assert "SimplifiedLayerNormalization" in found["executed"], "fused with the Casts around it"
        assert "ReduceMean" not in found["executed"]


@pytest.mark.parametrize("name", MODELS)
def test_casts_are_few_and_numbers_stay(name: str, halves: dict[str, Path]) -> None:
    model, sample = half_model(name), MODELS[name][1]
    data = halves[f"{name}-float16"].read_bytes()
    compiled = ir.from_proto(onnx.load_from_string(data))
    casts = [n for n in compiled.graph if n.op_type == "Cast" and n.metadata_props.get(PASS) == "precision"]
    assert len(casts) == CASTS[name]
    [expected] = session(model.SerializeToString(), optimized=False).run(None, sample)
    for optimized in (False, True):
        [got] = session(data, optimized=optimized).run(None, sample)
        assert got.dtype == expected.dtype
        assert np.abs(got - expected).max() <= 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("name", MODELS)
def test_numbers_of_bfloat16_by_the_reference(name: str, halves: dict[str, Path]) -> None:
    """ONNX's own evaluator computes bfloat16, which the CPU provider does not."""
    model, sample = half_model(name), MODELS[name][1]
    [expected] = session(model.SerializeToString(), optimized=False).run(None, sample)
    [got] = ReferenceEvaluator(onnx.load(halves[f"{name}-bfloat16"])).run(None, sample)
    assert got.dtype == expected.dtype
    assert np.abs(got - expected).max() <= 2e-2 * np.abs(expected).max()


@pytest.mark.skipif(not why_not_loaded("CUDAExecutionProvider"), reason="there is a GPU here")
@pytest.mark.parametrize("dtype", TYPES.values())
def test_bfloat16_is_not_judged_where_nothing_computes_it(dtype: str, halves: dict[str, Path], tmp_path: Path) -> None:
    onnx.save(half_model("encoder"), tmp_path / "float.onnx")
    report = verify(
        halves[f"encoder-{dtype}"],
        target_named("cuda"),
        against=tmp_path / "float.onnx",
        samples=[MODELS["encoder"][1]],
    )
    [numerics] = [proof for proof in report.proofs if proof.name == "numerics"]
    assert numerics.passed is (True if dtype == "float16" else None)
    assert ("bfloat16" in numerics.detail) is (dtype == "bfloat16")
