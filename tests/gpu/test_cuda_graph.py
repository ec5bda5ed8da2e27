"""A node captured in a CUDA graph reads its inputs anew at each replay, and answers as it does without a graph.

On the other machines the same holds of a session bound to fixed memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.operators import (
    Operator,
    linear24,
    linear24_e4m3,
    linear24_w8a8,
    linear_e4m3,
    linear_w4a16,
    linear_w8a8,
    norm_quant,
    quantize_rows,
)
from tests.gpu.machine import Machine
from tests.gpu.reference import Array, two_of_four

_F16, _E4M3 = ir.DataType.FLOAT16, ir.DataType.FLOAT8E4M3FN
_N, _K, _BLOCK = 64, 256, 64

_OPERATORS = [
    quantize_rows(dtype=_F16),
    quantize_rows(dtype=_F16, codes=_E4M3),
    norm_quant("LayerNorm", dtype=_F16),
    norm_quant("RMSNorm", add=True, dtype=_F16, codes=_E4M3),
    linear_w8a8(bias=True, activation="Gelu", dtype=_F16),
    linear_w8a8(requant=True),
    linear_e4m3(bias=True, dtype=_F16),
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
    first, second = _inputs(operator, rows, 0), _inputs(operator, rows, 1)
    moving = {name for name in first if name in ("x", "x_q", "x_scale", "skip")}
    constants = set(first) - moving
    second |= {name: first[name] for name in constants}
    options: dict[str, Any] = {"constants": constants, "wanted": {o.name for o in operator.outputs if o.optional}}
    options["attributes"] = {a.name: {"epsilon": 1e-5, "block_size": _BLOCK}[a.name] for a in operator.attributes}
    with machine.node(operator, first, cuda_graph=machine.kind == "cuda", **options) as node:
        replayed = [node.run(inputs) for inputs in (first, second, first)]
    for inputs, found in zip((first, second), replayed, strict=False):
        for name, expected in machine.run(operator, inputs, **options).items():
            assert found[name].tobytes() == expected.tobytes(), name
    assert all(replayed[0][name].tobytes() == replayed[2][name].tobytes() for name in replayed[0])


def _inputs(operator: Operator, rows: int, seed: int) -> dict[str, Array]:
    """Random inputs by the names and shapes of the operator's operands."""
    rng = np.random.default_rng(seed)
    sizes = {"...": rows, "N": _N, "K": _K, "1": 1, "K/B": _K // _BLOCK}
    found = {}
    for operand in operator.inputs:
        shape = tuple(sizes[letter] for letter in operand.shape)
        array = _DRAW[operand.dtype](rng, shape)
        found[operand.name] = np.abs(array) if "scale" in operand.name else array
    if operator.name.startswith("Linear24"):
        found["w"] = two_of_four(rng, found["w"])
    return found


def _floats(dtype: Any) -> Callable[[np.random.Generator, tuple[int, ...]], Array]:
    return lambda rng, shape: rng.standard_normal(shape).astype(dtype)


def _integers(low: int, high: int, dtype: Any) -> Callable[[np.random.Generator, tuple[int, ...]], Array]:
    return lambda rng, shape: rng.integers(low, high + 1, shape).astype(dtype)


_DRAW = {
    ir.DataType.FLOAT: _floats(np.float32),
    ir.DataType.FLOAT16: _floats(np.float16),
    ir.DataType.BFLOAT16: _floats(ml_dtypes.bfloat16),
    ir.DataType.FLOAT8E4M3FN: _floats(ml_dtypes.float8_e4m3fn),
    ir.DataType.INT8: _integers(-127, 127, np.int8),
    ir.DataType.INT4: _integers(-8, 7, ml_dtypes.int4),
    ir.DataType.UINT4: _integers(0, 15, ml_dtypes.uint4),
}
