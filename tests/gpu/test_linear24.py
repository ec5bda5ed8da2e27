"""Linear24, Linear24W8A8, Linear24E4M3."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.operators import Operator, linear24, linear24_e4m3, linear24_w8a8
from tests.gpu.machine import Machine
from tests.operators.linear24 import LINEAR24
from tests.operators.operands import operands

_F16 = ir.DataType.FLOAT16
_SHAPES = [((16,), 64, 32), ((1,), 96, 256), ((2, 5), 32, 64), ((33,), 24, 96), ((7,), 8, 32), ((64,), 128, 2048)]
"""Leading dimensions of x, N, K: rows that cuSPARSELt takes as they are, and rows that are padded for it."""


@pytest.mark.parametrize(("rows", "n", "k"), _SHAPES)
@pytest.mark.parametrize("operator", LINEAR24, ids=lambda operator: operator.name)
def test_results(machine: Machine, operator: Operator, rows: tuple[int, ...], n: int, k: int) -> None:
    machine.check(operator, rows, n, k)


@pytest.mark.parametrize("make", [linear24_w8a8, linear24_e4m3])
def test_one_scale_for_all_rows(machine: Machine, make: Callable[..., Operator]) -> None:
    machine.check(make(dtype=_F16, bias=True, activation="Gelu"), (24,), 64, 96, static=True)


@pytest.mark.parametrize("operator", [linear24(), linear24_w8a8(), linear24_e4m3()], ids=lambda o: o.name)
def test_no_rows(machine: Machine, operator: Operator) -> None:
    machine.check(operator, (0,), 32, 64)


@pytest.mark.parametrize("operator", [linear24(), linear24_w8a8(), linear24_e4m3()], ids=lambda o: o.name)
def test_a_weight_without_the_pattern_is_refused(cuda: Machine, operator: Operator) -> None:
    inputs = operands(operator, (16,), 32, 64)
    w = np.zeros((32, 64), np.float32)
    w[:, ::2] = 1
    w[5, 5] = -0.0  # a zero all the same
    w[20, 40:43] = 1
    w[9, 60:64] = 1
    inputs["w"] = w.astype(inputs["w"].dtype)
    with pytest.raises(Exception, match=r"row 9\b"):
        cuda.run(operator, inputs)
