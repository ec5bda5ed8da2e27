"""LayerNormQuant and RMSNormQuant, with and without Add."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from qcompile.compiler.operators import norm_quant
from qcompile.compiler.operators.norm_quant import Norm
from tests.gpu.machine import Machine
from tests.operators.operands import attributes_of, operands

_INT8, _E4M3 = ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN
_TYPES = [(ir.DataType.FLOAT, _INT8), (ir.DataType.FLOAT16, _E4M3), (ir.DataType.BFLOAT16, _INT8)]


@pytest.mark.parametrize(("rows", "k"), [((1,), 64), ((2, 3), 768), ((9,), 1000), ((2,), 8192), ((5,), 20), ((0,), 64)])
@pytest.mark.parametrize(("dtype", "codes"), _TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("add", [False, True], ids=["", "add"])
@pytest.mark.parametrize("norm", ["LayerNorm", "RMSNorm"])
def test_results(
    machine: Machine, norm: Norm, add: bool, dtype: ir.DataType, codes: ir.DataType, rows: tuple[int, ...], k: int
) -> None:
    machine.check(norm_quant(norm, add=add, dtype=dtype, codes=codes), rows, 1, k)


@pytest.mark.parametrize("wanted", [{"y"}, {"sum"}, set()], ids=lambda names: "".join(names) or "none")
def test_outputs_left_out_change_nothing(machine: Machine, wanted: set[str]) -> None:
    operator = norm_quant("LayerNorm", add=True, dtype=ir.DataType.FLOAT16)
    inputs, attributes = operands(operator, (9,), 1, 96), attributes_of(operator)
    whole = machine.run(operator, inputs, attributes)
    part = machine.run(operator, inputs, attributes, wanted)
    assert part.keys() == {"x_q", "x_scale"} | wanted
    assert all(array.tobytes() == whole[name].tobytes() for name, array in part.items())
