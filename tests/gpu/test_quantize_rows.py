"""QuantizeRows: codes and scales are the body's bit for bit, whatever holds the row."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.operators import Operator, quantize_rows
from tests.gpu.machine import Machine
from tests.operators.operands import operands

_CODES = [ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN]
_OPERATORS = [
    quantize_rows(dtype=dtype, codes=codes)
    for dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    for codes in _CODES
]
_ROWS = [(1,), (2,), (7,), (16,), (17,), (64,), (3, 43), (512,)]
_LENGTHS = [1, 7, 16, 768, 1032, 4096, 5120, 16384, 20000, 40000]
"""Rows held by a warp, by 128 and by 512 threads, and rows read twice."""


def check(machine: Machine, operator: Operator, x: np.ndarray) -> None:
    found = machine.run(operator, {"x": x})
    for name, right in Machine("body", None).run(operator, {"x": x}).items():
        np.testing.assert_array_equal(found[name].view(np.uint8), right.view(np.uint8), err_msg=name)


@pytest.mark.parametrize("rows", _ROWS, ids=str)
@pytest.mark.parametrize("operator", _OPERATORS, ids=lambda operator: operator.name)
def test_rows(machine: Machine, operator: Operator, rows: tuple[int, ...]) -> None:
    machine.check(operator, rows, 0, 200)


@pytest.mark.parametrize("k", _LENGTHS)
@pytest.mark.parametrize("operator", _OPERATORS, ids=lambda operator: operator.name)
def test_bits_are_those_of_the_body(cuda: Machine, operator: Operator, k: int) -> None:
    x = operands(operator, (9,), 0, k)["x"]
    x[3] = 0
    check(cuda, operator, x)


@pytest.mark.parametrize("codes", _CODES, ids=lambda codes: codes.name)
def test_a_row_of_zeros_has_scale_1(machine: Machine, codes: ir.DataType) -> None:
    x = np.zeros((3, 64), np.float16)
    x[1] = -2
    found = machine.run(quantize_rows(dtype=ir.DataType.FLOAT16, codes=codes), {"x": x})
    highest = 127 if codes is ir.DataType.INT8 else float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)
    np.testing.assert_array_equal(found["x_scale"], np.array([[1], [2 / highest], [1]], np.float32))
    np.testing.assert_array_equal(found["x_q"].astype(np.float32), np.sign(x.astype(np.float32)) * highest)


@pytest.mark.parametrize("codes", _CODES, ids=lambda codes: codes.name)
def test_ties_and_subnormal_scales(cuda: Machine, codes: ir.DataType) -> None:
    ties = (np.arange(256, dtype=np.float32) - 128) / 2
    ties[0] = 127  # the scale of the row is 1
    tiny = np.arange(256, dtype=np.float32) * np.float32(2.0**-149)
    check(cuda, quantize_rows(codes=codes), np.stack([ties, tiny, tiny / 64]))


def test_a_nan_or_infinity_reaches_the_scale(cuda: Machine) -> None:
    x = np.ones((3, 64), np.float32)
    x[0, 63], x[1, 5] = np.nan, -np.inf
    found = cuda.run(quantize_rows(), {"x": x})
    np.testing.assert_array_equal(found["x_scale"][:, 0], np.float32([np.nan, np.inf, 1 / np.float32(127)]))
    np.testing.assert_array_equal(found["x_q"][2], 127)


@pytest.mark.parametrize("operator", _OPERATORS[:2], ids=lambda operator: operator.name)
def test_no_rows(machine: Machine, operator: Operator) -> None:
    machine.check(operator, (0,), 0, 64)
