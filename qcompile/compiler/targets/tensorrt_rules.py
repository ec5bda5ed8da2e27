"""What TensorRT's ONNX parser and builder refuse of a Q/DQ graph, or take and compute something else.

Rules that other targets share (formats, symmetry, positive and constant scales, activations per tensor, the axis of a
weight's scales, biases in float) follow from the rows and formats of the table; these are TensorRT's own.
"""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from qcompile.compiler.graph import is_constant
from qcompile.compiler.targets.rule import Rule

_PARSER = "onnx-tensorrt, onnxOpImporters.cpp (TensorRT 10.13 and later), import of QuantizeLinear and DequantizeLinear"
_OPERATORS = "onnx-tensorrt, docs/operators.md (TensorRT 10.15)"
_DEQUANTIZE = "documentation: TensorRT operators, Dequantize, and IDequantizeLayer"

_FOUR_BITS = (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.FLOAT4E2M1)


def _is_conversion(node: ir.Node) -> bool:
    return node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.domain in ("", "ai.onnx")


def _codes(node: ir.Node) -> ir.Value | None:
    return node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]


def _shapes(node: ir.Node) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Shapes of what a conversion reads and of its scale; None where one of them is not fixed."""
    found = []
    for value in node.inputs[:2]:
        if value is None or value.shape is None or not value.shape.is_static():
            return None
        found.append(tuple(int(d) for d in value.shape.numpy()))
    return (found[0], found[1])


def _reads_wide_codes(node: ir.Node) -> bool:
    source = node.inputs[0]
    return node.op_type == "DequantizeLinear" and source is not None and source.dtype is ir.DataType.INT32


def _wrong_count(node: ir.Node) -> bool:
    shapes = _shapes(node) if _is_conversion(node) else None
    if shapes is None or len(shapes[1]) != 1 or shapes[1] == (1,):
        return False
    axis, data = node.attributes.get_int("axis", 1), shapes[0]
    return not -len(data) <= axis < len(data) or data[axis] != shapes[1][0]


def _blocks(node: ir.Node) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """`_shapes` of a conversion in blocks."""
    shapes = _shapes(node) if _is_conversion(node) else None
    return shapes if shapes is not None and len(shapes[1]) > 1 else None


def _blocks_of_8_bits(node: ir.Node) -> bool:
    codes = _codes(node) if _blocks(node) else None
    return codes is not None and codes.dtype not in _FOUR_BITS


def _blocks_across(node: ir.Node) -> bool:
    shapes = _blocks(node)
    if shapes is None:
        return False
    data, scale = shapes
    blocked = [i for i, (d, s) in enumerate(zip(data, scale, strict=False)) if d != s]
    if len(data) != len(scale) or len(blocked) > 1:
        return True
    return any(i < len(data) - 2 or data[i] % scale[i] for i in blocked)


def _odd_elements(node: ir.Node) -> bool:
    codes = _codes(node) if _is_conversion(node) else None
    if codes is None or codes.dtype not in _FOUR_BITS or codes.shape is None or not codes.shape.is_static():
        return False
    return prod(codes.shape.numpy()) % 2 == 1


def _computes_doubles(node: ir.Node) -> bool:
    values = (*node.inputs, *node.outputs)
    return any(v is not None and v.dtype is ir.DataType.DOUBLE and not is_constant(v) for v in values)


RULES = (
    Rule(
        "it dequantizes int32 codes",
        _reads_wide_codes,
        "leave a bias float",
        _PARSER + ": INT8, FP8, FP4 and INT4 alone are dequantized",
    ),
    Rule(
        "it has not one scale for each channel of its axis",
        _wrong_count,
        "give each output channel one scale",
        _PARSER + ": as many scales as channels",
    ),
    Rule(
        "8-bit codes in blocks",
        _blocks_of_8_bits,
        "quantize 8-bit weights per channel",
        _DEQUANTIZE
        + ": blocks are for 4-bit types. TensorRT-RTX's builder restores such a weight in a kernel of its own",
    ),
    Rule(
        "its blocks do not divide one of the last two axes",
        _blocks_across,
        "quantize in blocks along what is summed over, of a size that divides it",
        _DEQUANTIZE + ": one axis, the last or the one before, is blocked, by a whole number",
    ),
    Rule(
        "4-bit codes of an odd number of elements",
        _odd_elements,
        "keep this weight float",
        _PARSER + ": two codes share a byte",
    ),
    Rule(
        "DynamicQuantizeLinear has no import",
        lambda node: node.op_type == "DynamicQuantizeLinear",
        "compile with scales from calibration",
        _OPERATORS,
    ),
    Rule(
        "it computes in float64, and an engine in float32",
        _computes_doubles,
        "cast to float32, or keep the model off TensorRT",
        _OPERATORS + ": DOUBLE is cast down to FLOAT",
    ),
)
