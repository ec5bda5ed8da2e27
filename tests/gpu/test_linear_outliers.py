"""LinearOutliersW8A8: every type and activation, rows and columns that fill no block."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from qcompile.compiler.operators import Operator, linear_outliers
from tests.gpu.machine import Machine

_F16, _BF16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
_VARIANTS = [
    linear_outliers(),
    linear_outliers(dtype=_F16, bias=True),
    linear_outliers(dtype=_BF16, bias=True, activation="Relu"),
    linear_outliers(dtype=_F16, activation="Gelu"),
    linear_outliers(dtype=_BF16, bias=True, activation="Silu"),
]


@pytest.mark.parametrize(("n", "k"), [(64, 64), (8, 16), (136, 272), (256, 4096)])
@pytest.mark.parametrize("operator", _VARIANTS, ids=lambda operator: operator.name)
def test_variants(machine: Machine, operator: Operator, n: int, k: int) -> None:
    machine.check(operator, (33,), n, k)


@pytest.mark.parametrize("rows", [(0,), (1,), (7,), (8,), (3, 43), (512,)], ids=str)
def test_rows(machine: Machine, rows: tuple[int, ...]) -> None:
    machine.check(linear_outliers(dtype=_F16, bias=True), rows, 136, 144)
