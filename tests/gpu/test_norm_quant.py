"""LayerNormQuant, RMSNormQuant, AddLayerNormQuant, AddRMSNormQuant."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.operators import Operator, norm_quant
from qcompile.compiler.operators.norm_quant import Norm
from tests.gpu.machine import Machine
from tests.operators.operands import attributes_of, operands

_F32, _F16, _BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
_E4M3 = ir.DataType.FLOAT8E4M3FN
_ROWS = [(1,), (2,), (7,), (16,), (17,), (64,), (3, 43), (512,)]
_VARIANTS = [
    norm_quant(norm, add=add, dtype=dtype) for norm in get_args(Norm) for add in (False, True) for dtype in (_F32, _F16)
] + [norm_quant("RMSNorm", add=True, dtype=_BF16, codes=_E4M3), norm_quant("LayerNorm", dtype=_BF16, codes=_E4M3)]


@pytest.mark.parametrize("rows", _ROWS, ids=str)
@pytest.mark.parametrize("norm", get_args(Norm))
def test_rows(machine: Machine, norm: Norm, rows: tuple[int, ...]) -> None:
    machine.check(norm_quant(norm, add=True, dtype=_F16), rows, 0, 200)


@pytest.mark.parametrize("k", [7, 768, 4096, 9000])
@pytest.mark.parametrize("operator", _VARIANTS, ids=lambda operator: operator.name)
def test_lengths(machine: Machine, operator: Operator, k: int) -> None:
    """Rows held by a warp, by 128 and by 512 threads, and rows read again at each look."""
    machine.check(operator, (9,), 0, k)


@pytest.mark.parametrize("k", [20000, 40000])
@pytest.mark.parametrize("operator", _VARIANTS, ids=lambda operator: operator.name)
def test_long_rows(cuda: Machine, operator: Operator, k: int) -> None:
    """Not for the body: its runtime sums such a row less accurately."""
    cuda.check(operator, (9,), 0, k)


@pytest.mark.parametrize("wanted", [(), ("y",), ("sum",)], ids=str)
def test_outputs_that_nobody_reads_are_left_out(machine: Machine, wanted: tuple[str, ...]) -> None:
    operator = norm_quant("LayerNorm", add=True, dtype=_F16)
    inputs, attributes = operands(operator, (9,), 0, 768), attributes_of(operator)
    everything = machine.run(operator, inputs, attributes)
    found = machine.run(operator, inputs, attributes, wanted)
    assert set(found) == {"x_q", "x_scale", *wanted}
    for name, array in found.items():
        np.testing.assert_array_equal(array, everything[name], err_msg=name)


def test_a_mean_far_from_zero_costs_no_accuracy(cuda: Machine) -> None:
    """E[x^2] - E[x]^2 would have no digit left."""
    operator = norm_quant("LayerNorm")
    inputs, attributes = operands(operator, (9,), 0, 4096), attributes_of(operator)
    inputs["x"] = (inputs["x"] * 0.25).astype(np.float32) + np.float32(4096)
    x = inputs["x"].astype(np.float64)
    centered = x - x.mean(-1, keepdims=True)
    unit = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + attributes["epsilon"])
    found = cuda.run(operator, inputs, attributes)
    np.testing.assert_allclose(found["y"], unit * inputs["gamma"] + inputs["beta"], atol=0.01)


def test_no_rows(machine: Machine) -> None:
    machine.check(norm_quant("LayerNorm", add=True), (0,), 0, 64)
