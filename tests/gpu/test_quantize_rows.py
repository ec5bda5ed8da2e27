"""QuantizeRows, QuantizeRowsE4M3."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.operators import quantize_rows
from qcompile.compiler.operators.definition import FLOAT_TYPES
from tests.gpu.machine import Machine

_CODES = [ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN]


@pytest.mark.parametrize(("rows", "k"), [((1,), 16), ((2, 5), 48), ((33,), 1000), ((3,), 4096), ((7,), 13), ((0,), 8)])
@pytest.mark.parametrize("codes", _CODES, ids=lambda t: t.name)
@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=lambda t: t.name)
def test_results(machine: Machine, dtype: ir.DataType, codes: ir.DataType, rows: tuple[int, ...], k: int) -> None:
    machine.check(quantize_rows(dtype=dtype, codes=codes), rows, 1, k)


@pytest.mark.parametrize("codes", _CODES, ids=lambda t: t.name)
def test_a_row_of_zeros_has_scale_1(machine: Machine, codes: ir.DataType) -> None:
    x = np.zeros((3, 64), np.float16)
    x[1] = -2
    found = machine.run(quantize_rows(dtype=ir.DataType.FLOAT16, codes=codes), {"x": x})
    highest = 127 if codes is ir.DataType.INT8 else float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)
    np.testing.assert_array_equal(found["x_scale"], np.array([[1], [2 / highest], [1]], np.float32))
    np.testing.assert_array_equal(found["x_q"].astype(np.float32), np.sign(x.astype(np.float32)) * highest)
