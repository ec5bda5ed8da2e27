"""Scales as they are stored, and the nodes that restore them when the model is loaded.

fp32            s
fp16            Cast(s16)
power of two    Pow(2, Cast(e))            e: int8
fp8-e4m3        Cast(c) * t                c: float8e4m3fn, t: float32 of the whole tensor
double          Cast(c) * t + m            c: int8 in groups of 256, t: float32 of each group, m: the mean
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.codes import Codes
from qcompile.compiler.formats import FP8_E4M3, Scales
from qcompile.compiler.params import QuantParams
from qcompile.compiler.scales import GROUP
from qcompile.passes.lower.load_time import LoadTime
from qcompile.passes.lower.packing import blocks_last

Array = npt.NDArray[Any]


def stored_scale(codes: Codes, node: ir.Node, name: str, params: QuantParams, scale: Array) -> ir.Value:
    """The scales of a weight of `node`, float32 in the graph.

    Args:
        scale: those of `params`, the blocked axis last, in any shape.
    """
    writer = LoadTime(codes, node)
    return writer.once(name, lambda: _restored(writer, name, params, scale))


def stored_zero_point(codes: Codes, node: ir.Node, name: str, params: QuantParams, zero: Array) -> ir.Value:
    """Packed codes as they are; zero points that are no codes as the scales are, where those are fp16."""
    writer = LoadTime(codes, node)
    if zero.dtype != np.float32 or params.spec.stored_scales is not Scales.FLOAT16:
        return codes.constant(writer.graph, name, zero)
    half = codes.constant(writer.graph, name, zero.astype(np.float16))
    return writer.once(name, lambda: writer.cast(half, f"{name}_restored"))


def _restored(writer: LoadTime, name: str, params: QuantParams, scale: Array) -> ir.Value:
    codes, graph, shape, restored = writer.codes, writer.graph, scale.shape, f"{name}_restored"
    match params.spec.stored_scales:
        case Scales.FLOAT32:
            return codes.constant(graph, name, scale)
        case Scales.FLOAT16:
            return writer.cast(codes.constant(graph, name, scale.astype(np.float16)), restored)
        case Scales.POWER_OF_TWO:
            exponent = codes.constant(graph, f"{name}_exponent", (np.frexp(scale)[1] - 1).astype(np.int8))
            two = codes.constant(graph, "two", np.float32(2))
            return writer.add("Pow", [two, writer.cast(exponent, f"{exponent.name}_float")], restored, shape)
        case Scales.E4M3:
            numbers, whole = _nested(params)
            stored = codes.constant(graph, f"{name}_e4m3", numbers.reshape(shape), FP8_E4M3.dtype)
            factor = codes.constant(graph, f"{name}_of_tensor", whole)
            return writer.add("Mul", [writer.cast(stored, f"{stored.name}_float"), factor], restored, shape)
        case Scales.DOUBLE:
            return _double(writer, name, params, shape, restored)


def _nested(params: QuantParams) -> tuple[Array, Array]:
    assert params.nested is not None
    return blocks_last(params.nested.codes, params), params.nested.scale


def _double(writer: LoadTime, name: str, params: QuantParams, shape: tuple[int, ...], restored: str) -> ir.Value:
    """Whole groups are restored, what fills up the last one is cut off."""
    numbers, steps = _nested(params)
    assert params.nested is not None
    codes, graph, count = writer.codes, writer.graph, numbers.size
    grouped = np.zeros((len(steps), GROUP), np.int8)
    grouped.reshape(-1)[:count] = numbers.reshape(-1)
    made = writer.cast(codes.constant(graph, f"{name}_codes", grouped), f"{name}_codes_float")
    step = codes.constant(graph, f"{name}_of_group", steps.reshape(-1, 1))
    mean = codes.constant(graph, f"{name}_mean", params.nested.offset)
    made = writer.add("Mul", [made, step], f"{name}_difference", grouped.shape)
    made = writer.add("Add", [made, mean], f"{name}_grouped", grouped.shape)
    made = writer.cut(writer.reshape(made, f"{name}_flat", [grouped.size]), f"{name}_whole", 0, count)
    return made if shape == (count,) else writer.reshape(made, restored, shape)
