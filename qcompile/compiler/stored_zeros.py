"""Where the weights of a model are 0, as they are stored: floats, codes behind a conversion, codes that a kernel reads.

w = s (q - z) = 0  where  q = z        tables and floating-point codes: where the number of the code is 0
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.blocks import extract
from qcompile.compiler.formats import NF4
from qcompile.compiler.graph import constant, name_of
from qcompile.compiler.operators.calls import is_linear
from qcompile.compiler.operators.catalogue import catalogue
from qcompile.compiler.serialization import runnable
from qcompile.compiler.stored_weights import stored_behind
from qcompile.compiler.weight_pattern import summed_axis
from qcompile.runtime.providers import CPU, open_session

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_ZERO_POINT = {"MatMulIntegerToFloat": 5, "DynamicQuantizeMatMul": 3, "MatMulInteger": 3}
"""Where products of codes [K, N] have the zero points of the second operand."""

_NUMBER_OF_FP4 = 0b111
"""Bits beside the sign: 0 in both zeros."""


def nonzeros(node: ir.Node, model: ir.Model) -> Mask | None:
    """Where the weight of a linear layer of `model` is not 0, what is summed over as the last axis (of a convolution:
    channels); None for another operator, for one without a constant weight, and for a weight that cannot be read."""
    axis = summed_axis(node)
    if axis is not None:
        weight = _restored(node.inputs[1], model)
        return None if weight is None or weight.ndim < 2 else _mask(np.moveaxis(weight, axis, -1))
    if is_linear(node):
        return _of_operator(node)
    if len(node.inputs) < 2 or (codes := constant(node.inputs[1])) is None:
        return None
    match node.op_type:
        case op_type if op_type in _ZERO_POINT:
            zero = constant(_input(node, _ZERO_POINT[op_type]))
            return np.moveaxis(_mask(codes, 0 if zero is None else zero), -2, -1)
        case "MatMulNBits":
            return _of_blocks(node, codes)
        case "MatMulBnb4":
            numbers = _unpacked(codes, 4).reshape(node.attributes.get_int("N", 0), -1)
            zeros = (NF4.levels.index(0.0),) if node.attributes.get_int("quant_type", 0) else (0, 8)
            return np.isin(numbers, zeros, invert=True)
        case "MatMulBlockQuantizedFp4Weight":
            return _mask(_unpacked(codes, 4) & _NUMBER_OF_FP4)
        case "MatMulBlockQuantizedFp8Weight":
            return _mask(codes)
    return None


def _mask(codes: Array, zero: Any = 0) -> Mask:
    found: Mask = np.not_equal(codes, zero)
    return found


def _input(node: ir.Node, position: int) -> ir.Value | None:
    return node.inputs[position] if len(node.inputs) > position else None


def _of_operator(node: ir.Node) -> Mask | None:
    """Codes or floats [N, K] of an operator of ours, with zero points for blocks where it has them."""
    names = [operand.name for operand in catalogue()[node.op_type].inputs]
    weight = constant(node.inputs[names.index("w")])
    if weight is None or "w_zero" not in names:
        return None if weight is None else _mask(weight)
    zero = constant(node.inputs[names.index("w_zero")])
    return None if zero is None else _mask(weight, np.repeat(zero, node.attributes.get_int("block_size", 0), axis=1))


def _of_blocks(node: ir.Node, packed: Array) -> Mask:
    """MatMulNBits: [N, blocks, bytes of a block], zero points packed alike or floats."""
    bits, inner = node.attributes.get_int("bits", 4), node.attributes.get_int("K", 0)
    codes, given = _unpacked(packed, bits), constant(_input(node, 3))
    if given is None:
        zero: Array = np.full((*codes.shape[:2], 1), 2 ** (bits - 1))
    else:
        points = given if given.dtype.kind == "f" else _unpacked(given.reshape(len(codes), -1), bits)
        zero = points.reshape(len(codes), -1)[:, : codes.shape[1], None]
    return _mask(codes, zero).reshape(len(codes), -1)[:, :inner]


def _unpacked(packed: Array, bits: int) -> npt.NDArray[np.uint8]:
    """Codes of the last axis, of several in a byte the low bits first."""
    parts = packed.view(np.uint8)[..., None] >> np.arange(0, 8, bits, dtype=np.uint8)
    codes: npt.NDArray[np.uint8] = (parts & (2**bits - 1)).reshape(*packed.shape[:-1], -1)
    return codes


def _restored(value: ir.Value | None, model: ir.Model) -> Array | None:
    """A constant, or what the runtime makes of constants by a DequantizeLinear or when it loads the model."""
    if value is None or (array := constant(value)) is not None:
        return None if value is None else array
    made = value.producer()
    converted = made is not None and made.op_type == "DequantizeLinear" and constant(made.inputs[0]) is not None
    if not converted and not stored_behind(value):
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with runnable(extract(model, [], [name_of(value)])) as opened:
        try:
            found: Array = open_session(opened, options, CPU, {}).run(None, {})[0]
        except Exception:
            return None
    return found
