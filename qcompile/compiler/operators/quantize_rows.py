"""Codes of activations with a scale for each row, found as the model runs.

    x_scale = max |x| / 127 over a row, 1 where that is 0        (448 for E4M3)
    x_q     = round(x / x_scale)                                 half to even, in the range of the codes

All arithmetic is in float32. A NaN in a row makes its scale NaN where the runtime's ReduceMax does so.
"""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.formats import FP8_E4M3, INT8, NumericFormat
from qcompile.compiler.operators.definition import FLOAT_TYPES, Body, Operand, Operator

CODES = {ir.DataType.INT8: "", ir.DataType.FLOAT8E4M3FN: "E4M3"}
"""The types of codes, each with its suffix in operator names."""

_FORMATS: dict[ir.DataType, NumericFormat] = {f.dtype: f for f in (INT8, FP8_E4M3)}


def quantize_rows(*, dtype: ir.DataType = ir.DataType.FLOAT, codes: ir.DataType = ir.DataType.INT8) -> Operator:
    """QuantizeRows{E4M3}{T}: int8 codes, or E4M3 codes, of rows of type T."""
    high = _FORMATS[codes].high
    return Operator(
        name=f"QuantizeRows{CODES[codes]}{FLOAT_TYPES[dtype]}",
        inputs=(Operand("x", dtype, ("...", "K"), "activations"),),
        outputs=row_codes(codes),
        meaning=f"x_scale = max|x| / {high:g} over a row, 1 where that is 0; x_q = round(x / x_scale)",
        write=lambda body: write_rows(body, body.to_float("x", dtype), codes),
        lowest_opset=lowest_opset(codes),
    )


def row_codes(codes: ir.DataType) -> tuple[Operand, Operand]:
    """The outputs of every operator that quantizes rows."""
    return (
        Operand("x_q", codes, ("...", "K"), "codes"),
        Operand("x_scale", ir.DataType.FLOAT, ("...", "1"), "scale of each row"),
    )


def lowest_opset(codes: ir.DataType) -> int:
    """The oldest opset that has the type of the codes."""
    return max(13, _FORMATS[codes].opset)


def write_rows(body: Body, x: ir.Value, codes: ir.DataType) -> tuple[ir.Value, ir.Value]:
    """Codes and scales of a float32 `x`."""
    high = body.constant("high", _FORMATS[codes].high)
    largest = body.reduce_last("largest", "ReduceMax", body.add("magnitude", "Abs", x))
    # ONNX Runtime's CPU reductions leave the axis whole when there are no rows.
    bounds = [body.constant(n, [i], ir.DataType.INT64) for n, i in (("start", 0), ("end", 1), ("last_axis", -1))]
    step = body.add("step", "Div", body.add("one_a_row", "Slice", largest, *bounds), high)
    is_zero = body.add("is_zero", "Equal", step, body.constant("zero", 0.0))
    scale = body.add("scale", "Where", is_zero, body.constant("one", 1.0), step)
    quotient = body.add("quotient", "Div", x, scale)
    if codes is ir.DataType.INT8:
        quotient = body.add("whole", "Round", quotient)
        # A subnormal scale is inexact: the largest element can come out beyond 127.
        quotient = body.add("clipped", "Clip", quotient, body.add("low", "Neg", high), high)
    return body.cast("codes", quotient, codes), scale
