"""Linear24, Linear24W8A8, Linear24E4M3."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.operators import linear24, linear24_e4m3, linear24_w8a8
from qcompile.compiler.operators.linear import Activation
from tests.gpu import reference
from tests.gpu.machine import Machine
from tests.gpu.reference import FLOATS, Array

_SHAPES = [((16,), 64, 32), ((1,), 96, 256), ((2, 5), 32, 64), ((33,), 24, 96), ((7,), 8, 32), ((64,), 128, 2048)]
"""Leading dimensions of x, N, K: rows that need padding and such that do not."""


@pytest.mark.parametrize(("rows", "n", "k"), _SHAPES)
@pytest.mark.parametrize(("activation", "bias"), [("", False), ("Relu", True), ("Gelu", True), ("Silu", False)])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_floats(
    machine: Machine, dtype: str, activation: Activation, bias: bool, rows: tuple[int, ...], n: int, k: int
) -> None:
    rng = np.random.default_rng([n, k, *rows])
    t = FLOATS[dtype]
    inputs = {
        "x": reference.normal(rng, *rows, k).astype(t.numpy()),
        "w": reference.two_of_four(rng, rng.standard_normal((n, k)) / np.sqrt(k)).astype(t.numpy()),
    }
    if bias:
        inputs["bias"] = rng.standard_normal(n).astype(np.float32)
    found = machine.run(
        linear24(bias=bias, activation=activation, dtype=t), inputs, constants={"w", "bias"} & set(inputs)
    )
    # On CUDA the bias, and what GELU and SiLU are taken of, are rounded to the type first.
    slack = reference.epsilon(t) if machine.kind == "cuda" else 0
    expected, bound = reference.linear(
        inputs["x"], inputs["w"], t, bias=inputs.get("bias"), activation=activation, slack=slack
    )
    reference.assert_within(found["y"], expected, bound)


@pytest.mark.parametrize(("rows", "n", "k"), _SHAPES)
@pytest.mark.parametrize(
    ("dtype", "activation", "bias", "per_row"),
    [("f32", "", False, True), ("f16", "Gelu", True, False), ("bf16", "Silu", True, True)],
)
@pytest.mark.parametrize("codes", ["int8", "e4m3"])
def test_codes(
    machine: Machine,
    codes: str,
    dtype: str,
    activation: Activation,
    bias: bool,
    per_row: bool,
    rows: tuple[int, ...],
    n: int,
    k: int,
) -> None:
    inputs = _coded(codes, rows, n, k, bias=bias, per_row=per_row)
    t = FLOATS[dtype]
    make = linear24_w8a8 if codes == "int8" else linear24_e4m3
    found = machine.run(make(bias=bias, activation=activation, dtype=t), inputs, constants=_weights(inputs))
    expected, bound = _expected(inputs, t, activation)
    reference.assert_within(found["y"], expected, bound)


@pytest.mark.parametrize(("rows", "n", "k"), _SHAPES)
def test_requantized(machine: Machine, rows: tuple[int, ...], n: int, k: int) -> None:
    inputs = _coded("int8", rows, n, k, bias=True, per_row=True) | {"y_scale": np.array([0.02], np.float32)}
    found = machine.run(
        linear24_w8a8(bias=True, activation="Relu", requant=True), inputs, constants=_weights(inputs) | {"y_scale"}
    )
    expected, bound = _expected(inputs, ir.DataType.FLOAT, "Relu")
    scale = float(inputs["y_scale"][0])
    reference.assert_codes(found["y_q"], expected / scale, -128, 127, bound / scale)


@pytest.mark.parametrize("codes", ["int8", "e4m3"])
def test_no_rows(machine: Machine, codes: str) -> None:
    inputs = _coded(codes, (0,), 32, 64, bias=False, per_row=True)
    make = linear24_w8a8 if codes == "int8" else linear24_e4m3
    assert machine.run(make(), inputs, constants=_weights(inputs))["y"].shape == (0, 32)


@pytest.mark.parametrize("codes", ["int8", "e4m3", "f16"])
def test_a_weight_without_the_pattern_is_refused(cuda: Machine, codes: str) -> None:
    operator: Any
    if codes == "f16":
        operator, dtype = linear24(), np.dtype(np.float16)
        inputs = {"x": np.ones((16, 64), dtype)}
    else:
        operator = linear24_w8a8() if codes == "int8" else linear24_e4m3()
        inputs = _coded(codes, (16,), 32, 64, bias=False, per_row=True)
        dtype = inputs["w"].dtype
    w = np.zeros((32, 64), np.float32)
    w[:, ::2] = 1
    w[5, 4] = -0.0  # a zero all the same
    w[20, 40:43] = 1
    w[9, 60:64] = 1
    inputs["w"] = w.astype(dtype)
    with pytest.raises(Exception, match=r"node[\s\S]*row 9\b"):
        cuda.run(operator, inputs, constants=_weights(inputs))


def _coded(codes: str, rows: tuple[int, ...], n: int, k: int, *, bias: bool, per_row: bool) -> dict[str, Array]:
    rng = np.random.default_rng([n, k, *rows])
    if codes == "int8":
        x: Array = rng.integers(-127, 128, (*rows, k)).astype(np.int8)
        w: Array = rng.integers(-127, 128, (n, k)).astype(np.int8)
        unit = 127.0
    else:
        x = rng.standard_normal((*rows, k)).astype(ml_dtypes.float8_e4m3fn)
        w = rng.standard_normal((n, k)).astype(ml_dtypes.float8_e4m3fn)
        unit = 1.0
    inputs = {
        "x_q": x,
        "x_scale": rng.uniform(0.5, 2, (*rows, 1) if per_row else (1,)).astype(np.float32) / np.float32(unit),
        "w": reference.two_of_four(rng, w),
        "w_scale": rng.uniform(0.5, 2, n).astype(np.float32) / np.float32(unit * np.sqrt(k)),
    }
    if bias:
        inputs["bias"] = rng.standard_normal(n).astype(np.float32)
    return inputs


def _weights(inputs: dict[str, Array]) -> set[str]:
    return {"w", "w_scale", "bias"} & set(inputs)


def _expected(inputs: dict[str, Array], dtype: ir.DataType, activation: str) -> tuple[Array, Array]:
    return reference.linear(
        inputs["x_q"],
        inputs["w"],
        dtype,
        x_scale=inputs["x_scale"],
        w_scale=inputs["w_scale"],
        bias=inputs.get("bias"),
        activation=activation,
    )
