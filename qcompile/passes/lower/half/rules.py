"""What stays float32 whatever it gains: operators and their surroundings that half precision would spoil.

1. operators for which the target has no half kernel that is as safe as float32
2. the inside of a normalization that is written out: what a reduction adds up (x^2), and arithmetic with its result
   (x - mean, variance + epsilon, x / root). The runtime fuses it with the Casts around it into one operator
3. numbers made from wide integers (positions, lengths), since a half type holds whole numbers only up to
   2048 (float16) or 256 (bfloat16)
4. what is computed to become an integer again (sizes, indices), back to the last product
5. the argument of Sin and Cos, back to where it comes from: its rounding error is an absolute angle
6. constants that do not fit, and activations whose observed range does not
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import onnx_ir as ir

from qcompile.compiler.graph import constant, is_constant, is_float32, nodes
from qcompile.compiler.statistics import StatisticsTable
from qcompile.passes.lower.half.operands import Operands
from qcompile.passes.lower.half.ranges import HALF, origins, unfit_constant, unfit_range

PRODUCTS = {
    "Attention", "Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul", "MatMulBnb4", "MatMulNBits",
    "LinearW4A16", "LinearW4A16Bias", "LinearW4A16Zero", "LinearW4A16ZeroBias",
}  # fmt: skip
"""Operators that tensor cores compute: half precision pays whatever the conversions around it cost."""

_REDUCTIONS = {
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "CumSum",
}  # fmt: skip
_OF_STATISTICS = {"Add", "Clip", "Div", "Max", "Mul", "Pow", "Reciprocal", "Sqrt"}
_BOUNDED = {
    "AveragePool", "GlobalAveragePool", "LayerNormalization", "LogSoftmax", "MaxPool", "RMSNormalization", "Sigmoid",
    "Softmax", "Tanh",
}  # fmt: skip
_WIDE = {
    ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT16, ir.DataType.UINT32,
    ir.DataType.UINT64,
}  # fmt: skip
_ROUNDING = {"Floor", "Ceil", "Round", "Range", "Mod"}
_ANGLE = 16.0
"""Largest angle whose rounding in float16 leaves the sine right to about 2^-8."""


def kept_nodes(
    model: ir.Model, members: Mapping[ir.Node, Operands], ranges: StatisticsTable, dtype: ir.DataType
) -> dict[ir.Node, str]:
    """The members that stay float32 by rule, each with its reason."""
    kept: dict[ir.Node, str] = {}
    for node in nodes(model):
        if node.op_type in ("Sin", "Cos") and not _small_angle(node.inputs[0], ranges):
            for behind in _ancestors(node, lambda _: False):
                kept.setdefault(behind, f"it makes the argument of {node.op_type}")
        elif _makes_integers(node):
            for behind in _ancestors(node, lambda n: n.op_type in PRODUCTS | _BOUNDED):
                kept.setdefault(behind, "its result becomes an integer")
    for node, typed in members.items():
        why = _inside_normalization(node) or _unfit_constants(node, typed, dtype)
        if not why and node.op_type == "Pow" and ranges.range_of(str(node.outputs[0].name)) is None:
            why = "a power whose range was not observed"
        if why:
            kept.setdefault(node, why)
    return {node: why for node, why in kept.items() if node in members}


def kept_tensors(values: Collection[ir.Value], ranges: StatisticsTable, dtype: ir.DataType) -> dict[str, str]:
    """The activations that stay float32, wherever they are read, each with its reason."""
    kept: dict[str, str] = {}
    for value in values:
        reasons = (_unfit(origin, ranges, dtype) for origin in origins(value))
        why = next(filter(None, reasons), "")
        if why:
            kept[str(value.name)] = why
    return kept


def _unfit(value: ir.Value, ranges: StatisticsTable, dtype: ir.DataType) -> str:
    seen, counts = ranges.range_of(str(value.name)), _from_wide_integer(value)
    if seen is None:
        return "is a whole number of unknown size" if counts else ""
    most = max(abs(seen.low), abs(seen.high))
    inexact = counts and most > 2 ** (HALF[dtype].mantissa_bits + 1)
    return unfit_range(seen, dtype) or (f"counts up to {most:.0f}" if inexact else "")


def _small_angle(value: ir.Value | None, ranges: StatisticsTable) -> bool:
    seen = [ranges.range_of(str(origin.name)) for origin in origins(value)] if value is not None else []
    return all(r is not None and max(abs(r.low), abs(r.high)) <= _ANGLE for r in seen)


def _makes_integers(node: ir.Node) -> bool:
    if node.op_type == "Cast":
        return is_float32(node.inputs[0]) and node.outputs[0].dtype in _WIDE
    return node.op_type in _ROUNDING


def _from_wide_integer(value: ir.Value) -> bool:
    node = value.producer()
    source = node.inputs[0] if node is not None and node.op_type == "Cast" else None
    return source is not None and source.dtype in _WIDE


def _ancestors(node: ir.Node, stop: Callable[[ir.Node], bool]) -> Iterator[ir.Node]:
    """The nodes behind `node` through float32 values; those where `stop` holds are not entered."""
    waiting, seen = list(node.inputs), set[ir.Node]()
    while waiting:
        value = waiting.pop()
        producer = value.producer() if is_float32(value) and value is not None else None
        if producer is None or producer in seen or stop(producer):
            continue
        seen.add(producer)
        yield producer
        waiting += producer.inputs


def _inside_normalization(node: ir.Node) -> str:
    if node.op_type in ("Add", "Sub", "Mul", "Div") and any(map(_from_reduction, node.inputs)):
        return "it belongs to a normalization"
    squares = node.op_type == "Pow" or (node.op_type == "Mul" and node.inputs[0] is node.inputs[1])
    if squares and any(use.node.op_type in _REDUCTIONS for use in node.outputs[0].uses()):
        return "a reduction adds up its results"
    return ""


def _from_reduction(value: ir.Value | None) -> bool:
    """Whether `value` is the result of a reduction, or a function of such results and constants alone."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type in _REDUCTIONS:
        return node is not None
    if node.op_type not in _OF_STATISTICS:
        return False
    variable = [v for v in node.inputs if v is not None and not is_constant(v)]
    return bool(variable) and all(map(_from_reduction, variable))


def _unfit_constants(node: ir.Node, typed: Operands, dtype: ir.DataType) -> str:
    for position in typed.inputs:
        value = node.inputs[position]
        if value is not None and is_constant(value):
            array = constant(value)
            assert array is not None
            why = unfit_constant(array, dtype)
            if why:
                return f"its constant '{value.name}' {why}"
    return ""
