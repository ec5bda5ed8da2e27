"""TensorRT's rules for explicit Q/DQ: graphs it takes, and graphs that break one rule each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.compiler.targets import target_named
from qcompile.compiler.verification.legality import find_faults, prove_legality
from qcompile.runtime.providers import TENSORRT, builder_entries, session_entries
from qcompile.runtime.taps import Probe
from tests.verification.qdq_models import Builder, convolutions

RANDOM = np.random.default_rng(0)


def _conv(b: Builder, x: str, weight: str, output: str, axis: int = 0, **attributes: object) -> str:
    b.weight(weight, RANDOM.standard_normal((4, 4, 3, 3)), axis)
    return b.node("Conv", [x, f"{weight}_dequantized"], output, pads=[1, 1, 1, 1], **attributes)


def plain() -> onnx.ModelProto:
    b = Builder(signed=True)
    bias = b.constant("b", np.ones(4, np.float32))
    b.weight("W", RANDOM.standard_normal((4, 4, 3, 3)), 0)
    b.node("Conv", [b.convert("x"), "W_dequantized", bias], "y")
    return b.model({"x": [1, 4, 8, 8]}, ["y"])


def unsigned() -> onnx.ModelProto:
    b = Builder()
    _conv(b, b.convert("x"), "W", "y")
    return b.model({"x": [1, 4, 8, 8]}, ["y"])


def asymmetric() -> onnx.ModelProto:
    b = Builder(signed=True)
    _conv(b, b.convert("x", zero=3), "W", "y")
    return b.model({"x": [1, 4, 8, 8]}, ["y"])


def integer_bias() -> onnx.ModelProto:
    return convolutions(signed=True)


def float_weight() -> onnx.ModelProto:
    b = Builder(signed=True)
    weight = b.constant("W", RANDOM.standard_normal((4, 4, 3, 3)).astype(np.float32))
    b.node("Conv", [b.convert("x"), weight], "y")
    return b.model({"x": [1, 4, 8, 8]}, ["y"])


def weight_only() -> onnx.ModelProto:
    b = Builder(signed=True)
    _conv(b, "x", "W", "y")
    return b.model({"x": [1, 4, 8, 8]}, ["y"])


def wrong_axis() -> onnx.ModelProto:
    b = Builder(signed=True)
    _conv(b, b.convert("x"), "W", "y", axis=1)
    return b.model({"x": [1, 4, 8, 8]}, ["y"])


def residual() -> onnx.ModelProto:
    b = Builder(signed=True)
    x = b.convert("x")
    b.node("Add", [_conv(b, x, "W", "c"), x], "y")
    return b.model({"x": [1, 4, 8, 8]}, ["y"])


def lopsided_add() -> onnx.ModelProto:
    b = Builder(signed=True)
    b.node("Add", [b.convert("x"), "z"], "y")
    return b.model({"x": [1, 4, 8, 8], "z": [1, 4, 8, 8]}, ["y"])


def _concat(second: float) -> onnx.ModelProto:
    b = Builder(signed=True)
    joined = b.node("Concat", [b.convert("x"), b.convert("z", scale=second)], "joined", axis=1)
    b.weight("W", RANDOM.standard_normal((4, 8, 1, 1)), 0)
    b.node("Conv", [b.convert(joined), "W_dequantized"], "y")
    return b.model({"x": [1, 4, 8, 8], "z": [1, 4, 8, 8]}, ["y"])


def one_scale_concat() -> onnx.ModelProto:
    return _concat(0.05)


def two_scale_concat() -> onnx.ModelProto:
    return _concat(0.02)


def contrib_operator() -> onnx.ModelProto:
    b = Builder(signed=True)
    b.weight("W", RANDOM.standard_normal((16, 8)), 1)
    b.convert("x")
    b.node("MatMulIntegerToFloat", ["x_quantized", "W_quantized", "x_scale", "W_scale"], "y", "com.microsoft")
    return b.model({"x": [4, 16]}, ["y"])


@pytest.mark.parametrize("make", [plain, residual, one_scale_concat], ids=lambda f: f.__name__)
def test_accepted(make: Callable[[], onnx.ModelProto]) -> None:
    assert find_faults(ir.from_proto(make()), target_named("tensorrt")) == []


@pytest.mark.parametrize(
    ("make", "node", "rule"),
    [
        (unsigned, "n_x_quantized", "uint8"),
        (asymmetric, "n_x_quantized", "zero point is not 0"),
        (integer_bias, "n_c1", "DequantizeLinear on its bias"),
        (float_weight, "n_y", "its weight is not"),
        (weight_only, "n_y", "its activation is not"),
        (wrong_axis, "n_y", "axis 1"),
        (lopsided_add, "n_y", "one branch of an Add"),
        (two_scale_concat, "n_joined", "scales around this Concat differ"),
        (contrib_operator, "n_y", "no kernel on tensorrt"),
    ],
    ids=lambda p: getattr(p, "__name__", None),
)
def test_refused_with_the_node_and_the_rule(make: Callable[[], onnx.ModelProto], node: str, rule: str) -> None:
    faults = find_faults(ir.from_proto(make()), target_named("tensorrt"))
    assert any(fault.node == node and rule in fault.rule and fault.remedy for fault in faults), faults


def test_the_proof_counts_and_names_the_faults() -> None:
    proof = prove_legality(ir.from_proto(unsigned()), target_named("tensorrt"))
    assert proof.passed is False
    assert "n_x_quantized" in proof.detail


def test_a_float_bias_stays_float_when_the_cpu_stands_in() -> None:
    """ONNX Runtime would make an int32 bias of it and saturate that in a channel of tiny weights."""
    b = Builder(signed=True)
    weight = RANDOM.standard_normal((4, 4, 3, 3))
    weight[2] *= 1e-12
    b.weight("W", weight, 0)
    b.node("Conv", [b.convert("x"), "W_dequantized", b.constant("b", np.full(4, 5, np.float32))], "c")
    b.node("Softmax", [b.convert("c")], "y")
    model = b.model({"x": [1, 4, 8, 8]}, ["y"])
    sample = {"x": RANDOM.standard_normal((1, 4, 8, 8)).astype(np.float32)}
    as_written = Probe(model, ["c"], entries=session_entries("TensorrtExecutionProvider"))(sample)["c"]
    assert np.allclose(as_written[0, 2], 5, atol=1e-3)


def test_the_builder_sees_the_codes_of_weights(tmp_path: Path) -> None:
    """What ONNX Runtime does before it hands the graph to a provider, seen on the CPU at its first level."""
    import onnxruntime as ort

    model = convolutions(signed=True)
    left: dict[bool, int] = {}
    for guarded in (False, True):
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(tmp_path / "seen.onnx")
        for entry, value in (session_entries(TENSORRT) | (builder_entries(TENSORRT) if guarded else {})).items():
            options.add_session_config_entry(entry, value)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        seen = onnx.load(tmp_path / "seen.onnx").graph.node
        left[guarded] = sum(node.op_type == "DequantizeLinear" for node in seen)
    written = sum(node.op_type == "DequantizeLinear" for node in model.graph.node)
    assert left[True] == written
    assert left[False] < written, "ONNX Runtime no longer folds them: builder_entries can go"
