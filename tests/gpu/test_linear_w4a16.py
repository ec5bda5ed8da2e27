"""LinearW4A16: the kernel for few rows, that for many, and that for float32."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from qcompile.compiler.operators import linear_w4a16
from tests.gpu.machine import Machine

_F32, _F16, _BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
_ROWS = [(1,), (2,), (7,), (16,), (17,), (64,), (3, 43), (512,)]
"""Up to 16 decoding, beyond it tiles of 32, 64 and 128 rows; (3, 43) flattens to 129."""


@pytest.mark.parametrize("rows", _ROWS, ids=str)
@pytest.mark.parametrize("dtype", [_F32, _F16, _BF16], ids=lambda dtype: dtype.name)
def test_rows(machine: Machine, dtype: ir.DataType, rows: tuple[int, ...]) -> None:
    machine.check(linear_w4a16(dtype=dtype, bias=True), rows, 136, 1120)


@pytest.mark.parametrize("rows", [(5,), (40,)], ids=str)
@pytest.mark.parametrize(("n", "k", "block"), [(8, 32, 32), (25, 96, 32), (264, 192, 64), (72, 1152, 128)])
@pytest.mark.parametrize("zero", [False, True], ids=["", "zero"])
@pytest.mark.parametrize("dtype", [_F32, _F16, _BF16], ids=lambda dtype: dtype.name)
def test_blocks_and_tails(
    machine: Machine, dtype: ir.DataType, zero: bool, n: int, k: int, block: int, rows: tuple[int, ...]
) -> None:
    machine.check(linear_w4a16(dtype=dtype, zero=zero), rows, n, k, block=block)


@pytest.mark.parametrize("rows", [(1,), (16,), (32,), (100,)], ids=str)
def test_many_products_in_one_sum(machine: Machine, rows: tuple[int, ...]) -> None:
    """For the larger ones k is split among blocks."""
    machine.check(linear_w4a16(zero=True, bias=True, dtype=_F16), rows, 128, 8192, block=128)


@pytest.mark.parametrize("dtype", [_F32, _F16], ids=lambda dtype: dtype.name)
def test_no_rows(machine: Machine, dtype: ir.DataType) -> None:
    machine.check(linear_w4a16(dtype=dtype), (0,), 32, 64)


def test_a_block_that_no_kernel_has_is_refused(cuda: Machine) -> None:
    with pytest.raises(Exception, match="block_size"):
        cuda.check(linear_w4a16(), (4,), 32, 64, block=16)
