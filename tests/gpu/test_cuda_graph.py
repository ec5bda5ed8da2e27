"""A node captured in a CUDA graph reads its inputs anew at each replay, and answers as it does without a graph.

On the other machines the same holds of a session bound to fixed memory.
"""

from __future__ import annotations

import onnx_ir as ir
import pytest

from qcompile.compiler.operators import (
    Operator,
    linear24,
    linear24_e4m3,
    linear24_w8a8,
    linear_e4m3,
    linear_outliers,
    linear_w4a16,
    linear_w8a8,
    norm_quant,
    quantize_rows,
)
from tests.gpu.machine import Machine
from tests.operators.operands import CONSTANTS, attributes_of, operands

_F16, _E4M3 = ir.DataType.FLOAT16, ir.DataType.FLOAT8E4M3FN

_OPERATORS = [
    quantize_rows(dtype=_F16),
    quantize_rows(dtype=_F16, codes=_E4M3),
    norm_quant("LayerNorm", dtype=_F16),
    norm_quant("RMSNorm", add=True, dtype=_F16, codes=_E4M3),
    linear_w8a8(bias=True, activation="Gelu", dtype=_F16),
    linear_w8a8(requant=True),
    linear_e4m3(bias=True, dtype=_F16),
    linear_outliers(bias=True, activation="Relu", dtype=_F16),
    linear_w4a16(zero=True, dtype=_F16),
    linear_w4a16(bias=True, dtype=ir.DataType.BFLOAT16),
    linear24(bias=True, activation="Relu", dtype=_F16),
    linear24(activation="Gelu", dtype=_F16),
    linear24_w8a8(bias=True, dtype=_F16),
    linear24_e4m3(dtype=_F16),
]


@pytest.mark.parametrize("rows", [1, 24, 64])
@pytest.mark.parametrize("operator", _OPERATORS, ids=lambda operator: operator.name)
def test_replays_read_new_inputs(machine: Machine, operator: Operator, rows: int) -> None:
    first, second = (operands(operator, (rows,), 64, 256, block=64, seed=seed) for seed in (0, 1))
    second |= {name: array for name, array in first.items() if name in CONSTANTS}
    attributes = attributes_of(operator, block=64)
    with machine.node(operator, first, attributes, cuda_graph=machine.kind == "cuda") as node:
        replayed = [node.run(inputs) for inputs in (first, second, first)]
    for inputs, found in zip((first, second, first), replayed, strict=True):
        for name, right in machine.run(operator, inputs, attributes).items():
            assert found[name].tobytes() == right.tobytes(), name
