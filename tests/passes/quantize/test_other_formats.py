"""FP8 and 16-bit activations: what is placed, what it computes, and where it is refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from qcompile.compiler.params import dequantize, quantize
from qcompile.compiler.targets import target_named
from qcompile.compiler.verification.legality import find_faults
from qcompile.errors import RecipeError, TargetError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.runtime.providers import TENSORRT, session_entries
from tests.passes.harness import model_of
from tests.passes.int8 import Array, check, head, int8, normal
from tests.sweep.harness import Compiled, compile_in_memory, sqnr

LAYERS = head() + (
    "g (float[N,3,8,8] x) => (float[N,5] y) { c = Conv <pads = [1,1,1,1]> (x, w, b) r = Clip (c, low, high) "
    "d = Conv (r, v) p = GlobalAveragePool (d) f = Flatten (p) m = MatMul (f, u) y = Add (m, a) }"
)
LINEAR = head() + "g (float[6,16] x) => (float[6,8] y) { m = MatMul (x, w) y = Add (m, b) }"
X = {"x": normal(6, 16)}
FP8, INT16 = find_recipe("fp8-static"), find_recipe("int16-activations")


def for_tensorrt(text: str, weights: dict[str, Array], samples: list[dict[str, Array]], *options: str) -> Compiled:
    proto = ir.to_proto(model_of(text, weights))
    return compile_in_memory(proto, samples, FP8.with_overrides(options).passes(), target_named("tensorrt"))


def run(data: bytes, feeds: dict[str, Array]) -> Array:
    """On the CPU, with the options under which TensorRT's artifacts are proved."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for entry, value in session_entries(TENSORRT).items():
        options.add_session_config_entry(entry, value)
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, feeds)[0]
    return found


def test_fp8_for_tensorrt_loads_and_is_close_to_float() -> None:
    """With a Clip right before FP8 codes ONNX Runtime would not load the model: a Sum of one stands between."""
    weights = {
        "w": normal(8, 3, 3, 3),
        "b": normal(8),
        "low": np.array(0, np.float32),
        "high": np.array(6, np.float32),
        "v": normal(8, 8, 1, 1),
        "u": normal(8, 5),
        "a": normal(5),
    }
    samples = [{"x": normal(2, 3, 8, 8, seed=i)} for i in range(4)]
    compiled = for_tensorrt(LAYERS, weights, samples)
    plan = compiled.context.plan
    assert {p.spec.format.name for p in plan.tensors.values()} == {"fp8-e4m3"}
    assert {w.params.spec.format.name for w in plan.weights.values()} == {"fp8-e4m3"}
    largest = max(float(np.abs(s["x"]).max()) for s in samples)
    assert plan.tensors["x"].scale == pytest.approx(largest / 448, rel=1e-6)
    artifact = ir.from_proto(onnx.load_from_string(compiled.data))
    assert find_faults(artifact, target_named("tensorrt")) == []
    assert [n.op_type for n in artifact.graph].count("Sum") == 1
    expected = run(ir.to_proto(model_of(LAYERS, weights)).SerializeToString(), samples[0])
    assert sqnr(expected, run(compiled.data, samples[0])) > 18


def test_fp8_computes_with_the_numbers_of_its_codes() -> None:
    weights = {"w": normal(16, 8), "b": normal(8)}
    compiled = for_tensorrt(LINEAR, weights, [X], "precision.dtype=float32")
    plan = compiled.context.plan
    weight = plan.weights["w", "MatMul_0"]
    assert weight.codes.dtype == np.dtype("float8_e4m3fn")
    x = dequantize(quantize(X["x"], plan.tensors["x"]), plan.tensors["x"])
    expected = x @ dequantize(weight.codes, weight.params) + weights["b"]
    np.testing.assert_allclose(run(compiled.data, X), expected, rtol=1e-5, atol=1e-5)


def test_fp8_on_the_cpu_is_refused_before_anything_runs() -> None:
    with pytest.raises(TargetError, match="does not load at default options"):
        int8(LINEAR, {"w": normal(16, 8), "b": normal(8)}, [X], recipe=FP8, target=target_named("cpu"))


@pytest.mark.parametrize("activation", ["int16", "uint16"])
def test_rounded_to_16_bits_only_the_weights_are_noisy(activation: str) -> None:
    weights = {"w": normal(16, 8), "b": normal(8)}
    result = int8(LINEAR, weights, [X], f"place-int8.activation={activation}", recipe=INT16)
    assert result.forms == {"y": "ROUNDED"}
    weight = result.plan.weights["w", "MatMul_0"]
    exact = X["x"] @ dequantize(weight.codes, weight.params) + weights["b"]
    assert sqnr(exact, result.plain["y"]) > 80
    assert "smaller, not faster" in result.context.notices[0]
    check(result, least=35)


def test_16_bits_need_opset_21() -> None:
    with pytest.raises(RecipeError, match=r"int16 needs opset 21, and the model has 17.*upgrade-opset.minimum"):
        int8(LINEAR, {"w": normal(16, 8), "b": normal(8)}, [X], "place-int8.activation=int16")


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("activation", ["int8", "uint8"])
def test_symmetry_is_a_choice(activation: str, symmetric: bool) -> None:
    options = [f"place-int8.activation={activation}", f"place-int8.symmetric={symmetric}".lower()]
    result = int8(LINEAR, {"w": normal(16, 8), "b": normal(8)}, [{"x": np.abs(X["x"])}], *options)
    params = result.plan.tensors["x"]
    middle = {"int8": 0, "uint8": 128}[activation]
    assert (params.zero_point == middle) == symmetric
    assert ("8 times slower" in " ".join(result.context.notices)) == (activation == "int8")
    check(result, least=30 if symmetric else 35)


def test_a_weight_with_one_scale() -> None:
    weight = normal(16, 8) * np.float32(10.0) ** np.arange(-4, 4, dtype=np.float32)
    text = head() + "g (float[6,16] x) => (float[6,8] y) { y = Gemm (x, w, b) }"
    result = int8(text, {"w": weight, "b": normal(8)}, [X], "place-int8.per-channel=false")
    params = result.plan.weights["w", "Gemm_0"].params
    assert params.scale.shape == ()
    assert params.scale == pytest.approx(np.abs(weight).max() / 127)
    check(result, least=30)
