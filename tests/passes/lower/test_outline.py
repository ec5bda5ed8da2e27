"""outline: linear layers as operators that carry their definition."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext
from qcompile.compiler.formats import FORMATS, Scales
from qcompile.compiler.operators import DOMAIN
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.printer import print_model
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.targets import target_named
from qcompile.compiler.targets.table import Lowering
from qcompile.errors import TargetError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.passes.lower.outline import Outline
from qcompile.passes.lower.precision import Precision
from qcompile.passes.prepare.following_activation import following_activation
from tests.golden import assert_golden
from tests.passes.harness import model_of
from tests.passes.int8 import Lowered, head, int8, normal
from tests.passes.lower.weight_only import restored, weight_only

CUDA = target_named("cuda")
SAMPLES = [{"x": normal(2, 5, 16, seed=i)} for i in range(4)]
WEIGHTS = {"w": normal(16, 24) / 4, "b": normal(24), "v": normal(16, 8) / 4, "u": normal(24, 12) / 4}
MODEL = (
    head()
    + """g (float[N, 5, 16] x) => (float[N, 5, 24] y, float[N, 5, 8] z, float[N, 5, 12] t)
{
    m = MatMul (x, w)
    a = Add (m, b)
    y = Relu (a)
    e = Exp (x)
    z = MatMul (e, v)
    t = MatMul (y, u)
}"""
)
ACTIVATIONS = {
    "Relu": "y = Relu (a)",
    "Gelu": "y = Gelu (a)",
    "Gelu of erf": "d = Div (a, r) f = Erf (d) p = Add (f, one) h = Mul (a, p) y = Mul (h, half)",
    "Gelu of erf, halved first": "q = Mul (half, a) d = Div (a, r) f = Erf (d) p = Add (one, f) y = Mul (q, p)",
    "Silu": "s = Sigmoid (a) y = Mul (a, s)",
    "none: Gelu by tanh": 'y = Gelu <approximate = "tanh"> (a)',
    "none: the gate is read again": "s = Sigmoid (a) k = Mul (a, s) y = Add (k, s)",
    "none: the sum is read again": "k = Relu (a) y = Add (k, a)",
}
NUMBERS = {"r": np.sqrt(np.float32(2)), "one": np.float32(1), "half": np.float32(0.5)}


FLOAT32 = "precision.dtype=float32"


def lowered(recipe: str, text: str = MODEL, **weights: np.ndarray) -> Lowered:
    return int8(text, WEIGHTS | weights, SAMPLES, FLOAT32, target=CUDA, recipe=find_recipe(recipe))


def calls(result: Lowered) -> list[str]:
    return [n.op_type for n in result.model.graph if n.domain == DOMAIN]


def test_golden() -> None:
    model = model_of(MODEL, {name: np.round(array * 4) for name, array in WEIGHTS.items()})
    context = CompileContext(CUDA, Path("unused"))
    texts = [""]

    def remember(done: object, now: ir.Model) -> None:
        texts.append(print_model(now, provenance=True).split("graph qcompile::")[0])
        if getattr(done, "name", "") == "outline":
            assert_golden("passes/outline", f"# before\n{texts[-2]}\n# after\n{texts[-1]}")

    run_pipeline(find_recipe("int8-dynamic").passes(), model, context, remember)


@pytest.mark.parametrize("recipe", ["int8-static", "int8-dynamic", "fp8-static", "fp8-dynamic"])
def test_the_answers_stay(recipe: str) -> None:
    result = lowered(recipe)
    linear = "LinearE4M3" if recipe.startswith("fp8") else "LinearW8A8"
    assert [c for c in calls(result) if c.startswith("Linear")] == [f"{linear}BiasRelu", linear]
    assert min(result.sqnr(name) for name in "yzt") > 25
    for name in "yzt":
        np.testing.assert_allclose(result.optimized[name], result.plain[name], rtol=1e-3, atol=1e-4)


def test_fp8_by_rows_needs_a_target_that_has_it() -> None:
    with pytest.raises(TargetError, match="FP8 is for --target cuda"):
        int8(MODEL, WEIGHTS, SAMPLES, recipe=find_recipe("fp8-dynamic"), target=target_named("cpu"))


def test_a_layer_of_another_shape_stays_float_and_says_why() -> None:
    reasons = lowered("int8-static").plan.kept_float.values()
    assert [r for r in reasons if "K a multiple of 16" in r]


def test_weights_are_stored_row_by_row() -> None:
    result = lowered("int8-static")
    call = next(n for n in result.model.graph if n.op_type == "LinearW8A8BiasRelu")
    w, scale = (v.const_value.numpy() for v in call.inputs[2:4] if v is not None and v.const_value is not None)
    assert w.shape == (24, 16)
    np.testing.assert_allclose(w * scale[:, None], WEIGHTS["w"].T, atol=scale.max() * 0.51)


def test_a_tensor_is_quantized_once_for_all_its_readers() -> None:
    text = head() + "g (float[N, 16] x) => (float[N, 24] y, float[N, 8] z) { y = MatMul (x, w) z = MatMul (x, v) }"
    recipe = find_recipe("int8-dynamic")
    apart = [step for step in recipe.steps if step.name != "merge-linear"]
    result = int8(
        text,
        {"w": WEIGHTS["w"], "v": WEIGHTS["v"]},
        [{"x": normal(5, 16)}],
        target=CUDA,
        recipe=recipe.model_copy(update={"steps": tuple(apart)}),
    )
    assert sorted(calls(result)) == ["LinearW8A8", "LinearW8A8", "QuantizeRows"]


def test_a_gemm_with_transposed_weight_and_bias_of_one_row() -> None:
    text = head() + "g (float[N, 16] x) => (float[N, 24] y) { y = Gemm <transB = 1> (x, wt, bias) }"
    samples = [{"x": normal(5, 16, seed=i)} for i in range(4)]
    weights = {"wt": normal(24, 16) / 4, "bias": normal(1, 24)}
    result = int8(text, weights, samples, target=CUDA, recipe=find_recipe("int8-static"))
    assert calls(result) == ["LinearW8A8Bias"]
    assert result.sqnr("y") > 25


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_that_alone_reads_the_result(name: str) -> None:
    numbers = {k: v for k, v in NUMBERS.items() if f"({k}," in ACTIVATIONS[name] or f" {k})" in ACTIVATIONS[name]}
    text = head(20) + "g (float[2, 3] x) => (float[2, 3] y) { a = Exp (x) " + ACTIVATIONS[name] + " }"
    model = model_of(text.replace("ir_version: 8", "ir_version: 9"), numbers)
    activation, absorbed = following_activation(model.graph[0].outputs[0])
    if name.startswith("none"):
        assert (activation, absorbed) == ("", [])
    else:
        assert activation == name.split(" ")[0]
        assert set(absorbed) == set(model.graph) - {model.graph[0]}
        assert absorbed[-1].outputs[0] is model.graph.outputs[0]


@pytest.mark.parametrize(("name", "symmetric"), [("int4", True), ("int4", False), ("uint4", False)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_of_four_bits_in_blocks(name: str, symmetric: bool, dtype: Literal["float32", "float16"]) -> None:
    text = head(21) + "g (float[6,64] x) => (float[6,16] y, float[6,16] z) "
    text += "{ m = MatMul (x, w) y = Add (m, b) z = Gemm (x, w) }"
    spec = QuantSpec(FORMATS[name], symmetric=symmetric, full_range=symmetric, scales=Scales.FLOAT16)
    weights, sample = {"w": normal(64, 16) + 0.2, "b": normal(16)}, {"x": normal(6, 64)}
    half_or_not = [Precision(dtype=dtype)]
    result = weight_only(
        text, weights, sample, spec, 32, Outline(), lowering=Lowering.OPERATOR, after=half_or_not, target=CUDA
    )
    zero, half = "" if symmetric else "Zero", "Fp16" if dtype == "float16" else ""
    assert calls(result) == [f"LinearW4A16{zero}Bias{half}", f"LinearW4A16{zero}{half}"]
    exact = sample["x"] @ restored(result)
    close = 1e-4 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(result.plain["z"], exact, rtol=0, atol=close)
    np.testing.assert_allclose(result.plain["y"], exact + weights["b"], rtol=0, atol=close)
    assert [v.name for v in result.initializers().values() if v.dtype is FORMATS[name].dtype] or not symmetric
