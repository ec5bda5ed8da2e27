"""How a node computes, read off the graph around it: for the files of any tool.

Source: the patterns that ONNX Runtime fuses (QDQ selectors), and the names of its integer operators.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.compiler.operators import calls
from qcompile.compiler.plan import Form
from qcompile.compiler.stored_weights import stored_weight

_WEIGHTED = {"MatMul": (0, 1), "Gemm": (0, 1), "Conv": (0, 1), "ConvTranspose": (0, 1)}
"""Operators that compute with integers and give float, with the inputs that must be codes for that."""

_FLOAT_OUTPUT = frozenset(
    {
        "MatMulInteger",
        "ConvInteger",
        "MatMulIntegerToFloat",
        "QAttention",
    }
)
_MOVES = frozenset(
    {"Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GlobalMaxPool", "Identity", "MaxPool"}
    | {"Pad", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""Operators that move values and compute none: with equal parameters before and after, codes pass through."""

_ACTIVATED = frozenset({"Conv", "ConvTranspose", "Gemm", "Add"})
"""Operators whose quantized kernels swallow a Relu or Clip that follows."""

_INTEGER_INPUTS = 4
"""Accuracy level of a MatMulNBits that quantizes its inputs."""

_WIDEST_CODES = 8
_QGEMM_INPUTS_WITH_OUTPUT_SCALE = 8


def form_of(node: ir.Node) -> Form | str:
    """One of plan.Form, or 'int4 weights in blocks of 32' and the like where the weights alone are stored as codes."""
    if node.op_type in _FLOAT_OUTPUT:
        return Form.INPUTS
    if node.op_type in ("DynamicQuantizeMatMul", "DynamicQuantizeLSTM"):
        return Form.DYNAMIC
    if node.op_type == "QGemm":
        return Form.FULL if len(node.inputs) >= _QGEMM_INPUTS_WITH_OUTPUT_SCALE else Form.INPUTS
    if node.op_type.startswith("QLinear"):
        return Form.FULL
    stored = stored_weight(node)
    if stored is not None:
        quantizes = node.op_type == "MatMulNBits" and node.attributes.get_int("accuracy_level", 0) == _INTEGER_INPUTS
        return f"{stored}, int8 inputs" if quantizes else str(stored)
    if node.op_type == "Gather" and _looks_up_codes(node):
        return Form.ROWS
    if calls.is_linear(node):
        return calls.form_of(node)
    return _from_conversions(node)


def _from_conversions(node: ir.Node) -> Form | str:
    needed = _WEIGHTED.get(node.op_type)
    read = [v for i, v in enumerate(node.inputs) if v is not None and (needed is None or i in needed)]
    activations = [v for v in read if not _is_stored(v)]
    dequantized = [v for v in read if _dequantize(v) is not None]
    if needed and activations and len(dequantized) == len(read):
        return Form.FULL if _quantized_after(node) else Form.INPUTS
    if needed is None and activations and all(_dequantize(v) for v in activations) and _quantized_after(node):
        return Form.PASS if node.op_type in _MOVES and _same_params(node, activations[0]) else Form.FULL
    return Form.FLOAT


def _looks_up_codes(node: ir.Node) -> bool:
    """A stored table of codes, whose rows become float after they were picked."""
    table, readers = node.inputs[0], list(node.outputs[0].consumers())
    tensor = table.const_value if table is not None else None
    if tensor is None or not tensor.dtype.is_integer() or tensor.dtype.bitwidth > _WIDEST_CODES:
        return False
    return bool(readers) and all(r.op_type in ("DequantizeLinear", "Cast") for r in readers)


def _dequantize(value: ir.Value) -> ir.Node | None:
    node = value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _origin(value: ir.Value) -> ir.Value:
    while (node := _dequantize(value)) is not None and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _is_stored(value: ir.Value) -> bool:
    """A constant, also one behind a DequantizeLinear or a QuantizeLinear and a DequantizeLinear."""
    value = _origin(value)
    node = value.producer()
    if node is not None and node.op_type == "QuantizeLinear" and node.inputs[0] is not None:
        value, node = node.inputs[0], node.inputs[0].producer()
    return value.is_initializer() or value.const_value is not None or (node is not None and node.op_type == "Constant")


def _quantized_after(node: ir.Node) -> list[ir.Node]:
    """The QuantizeLinear nodes that read the first output, or that of its activation, when nothing else does."""
    readers = list(node.outputs[0].consumers()) if node.outputs else []
    if node.op_type in _ACTIVATED and len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        readers = list(readers[0].outputs[0].consumers())
    return readers if readers and all(r.op_type == "QuantizeLinear" for r in readers) else []


def _same_params(node: ir.Node, read: ir.Value) -> bool:
    before, after = _dequantize(read), _quantized_after(node)
    if before is None or not after:
        return False
    return all(_equal(x, y) for x, y in zip(before.inputs[1:3], after[0].inputs[1:3], strict=False))


def _equal(a: ir.Value | None, b: ir.Value | None) -> bool:
    if a is b:
        return True
    if a is None or b is None or a.const_value is None or b.const_value is None or a.const_value.size != 1:
        return False
    return bool(np.array_equal(a.const_value.numpy(), b.const_value.numpy()))
