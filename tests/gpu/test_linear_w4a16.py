"""LinearW4A16."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from qcompile.compiler.operators import linear_w4a16
from qcompile.compiler.operators.definition import FLOAT_TYPES
from qcompile.compiler.operators.linear_w4a16 import BLOCK_SIZES
from tests.gpu.machine import Machine


@pytest.mark.parametrize(
    ("rows", "n", "k"),
    [((1,), 64, 128), ((16,), 8, 256), ((2, 5), 24, 128), ((33,), 200, 384), ((130,), 64, 2048), ((0,), 64, 128)],
)
@pytest.mark.parametrize("block", BLOCK_SIZES)
@pytest.mark.parametrize("zero", [False, True], ids=["int4", "uint4"])
@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=lambda t: t.name)
def test_results(
    machine: Machine, dtype: ir.DataType, zero: bool, block: int, rows: tuple[int, ...], n: int, k: int
) -> None:
    machine.check(linear_w4a16(zero=zero, bias=zero, dtype=dtype), rows, n, k, block=block)
