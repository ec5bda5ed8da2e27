"""The rules that every target shares, on the CPU's table."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.compiler.targets import target_named
from qcompile.compiler.verification.legality import find_faults
from tests.verification.qdq_models import Builder, convolutions

CPU = target_named("cpu")


def test_unsigned_codes_and_integer_biases_are_legal() -> None:
    assert find_faults(ir.from_proto(convolutions()), CPU) == []


def test_a_bias_of_another_scale_is_a_fault() -> None:
    b, random = Builder(), np.random.default_rng(0)
    b.weight("W", random.standard_normal((8, 4, 3, 3)), 0)
    bias = b.integer_bias("b", random.standard_normal(8), "W", wrong_by=2.0)
    b.node("Conv", [b.convert("x"), "W_dequantized", bias], "c")
    b.node("Softmax", [b.convert("c")], "y", axis=1)
    faults = find_faults(ir.from_proto(b.model({"x": [1, 4, 8, 8]}, ["y"])), CPU)
    assert [(f.node, f.rule) for f in faults] == [("n_c", "the scale of its bias is not s_x * s_w")]


def test_a_moved_tensor_keeps_its_scale() -> None:
    b = Builder()
    b.node("Transpose", [b.convert("x")], "t", perm=[1, 0])
    b.node("Identity", [b.convert("t", scale=0.1)], "y")
    faults = find_faults(ir.from_proto(b.model({"x": [4, 8]}, ["y"])), CPU)
    assert [f.node for f in faults] == ["n_t"]


def test_a_scale_of_zero_is_a_fault() -> None:
    b = Builder()
    b.scale = 0.0
    b.node("Identity", [b.convert("x")], "y")
    faults = find_faults(ir.from_proto(b.model({"x": [4, 8]}, ["y"])), CPU)
    assert {f.rule for f in faults} == {"its scale is not positive"}


def test_the_cuda_target_takes_no_pairs_and_says_what_to_use() -> None:
    faults = find_faults(ir.from_proto(convolutions(signed=True)), target_named("cuda"))
    assert any("tensorrt" in f.rule for f in faults)
