"""A norm over the last axis whose result becomes codes with a scale for each row.

    sum          = x + skip, rounded to T                                   (the Add variants; otherwise x)
    y            = LayerNorm(sum) = (sum - mean) / sqrt(variance + epsilon) * gamma + beta
                 or RMSNorm(sum)  = sum / sqrt(mean of squares + epsilon) * gamma
    x_q, x_scale = QuantizeRows(y)                                          before y is rounded to T

All arithmetic is in float32. y and sum leave rounded to T, for readers of the float values. They come first because
the runtime wants an entry for every output, and what is left out at the end of a list gets lost in files.
"""

from __future__ import annotations

from typing import Literal, get_args

import onnx_ir as ir

from qcompile.compiler.operators.definition import FLOAT_TYPES, Attribute, Body, Operand, Operator
from qcompile.compiler.operators.quantize_rows import CODES, lowest_opset, row_codes, write_rows

Norm = Literal["LayerNorm", "RMSNorm"]
NORMS: tuple[Norm, ...] = get_args(Norm)


def norm_quant(
    norm: Norm = "LayerNorm",
    *,
    add: bool = False,
    dtype: ir.DataType = ir.DataType.FLOAT,
    codes: ir.DataType = ir.DataType.INT8,
) -> Operator:
    """{Add}{LayerNorm|RMSNorm}Quant{E4M3}{T}: the Add variants normalize x + skip."""
    rows = ("...", "K")
    inputs = [Operand("x", dtype, rows, "activations")]
    if add:
        inputs.append(Operand("skip", dtype, rows, "added to x"))
    inputs.append(Operand("gamma", ir.DataType.FLOAT, ("K",), "factor of each column"))
    if norm == "LayerNorm":
        inputs.append(Operand("beta", ir.DataType.FLOAT, ("K",), "added to each column"))
    outputs = [Operand("y", dtype, rows, "the norm", optional=True)]
    if add:
        outputs.append(Operand("sum", dtype, rows, "x + skip", optional=True))
    outputs += row_codes(codes)

    def write(body: Body) -> list[ir.Value]:
        x = body.to_float("x", dtype)
        results = []
        if add:
            total = body.add("total", "Add", x, body.to_float("skip", dtype))
            results = [body.of_type("sum_rounded", total, dtype)]
            x = total if dtype is ir.DataType.FLOAT else body.cast("sum_float", results[0], ir.DataType.FLOAT)
        y = _layer_norm(body, x) if norm == "LayerNorm" else _rms_norm(body, x)
        rows_and_scale = write_rows(body, y, codes)
        return [body.of_type("y_rounded", y, dtype), *results, *rows_and_scale]

    argument = "x + skip" if add else "x"
    return Operator(
        name=("Add" if add else "") + norm + "Quant" + CODES[codes] + FLOAT_TYPES[dtype],
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        meaning=f"y = {norm}({argument}); x_q, x_scale = QuantizeRows{CODES[codes]}(y)",
        write=write,
        attributes=(Attribute("epsilon", ir.AttributeType.FLOAT, "added to the variance or the mean of squares"),),
        lowest_opset=max(17, lowest_opset(codes)),
    )


def _layer_norm(body: Body, x: ir.Value) -> ir.Value:
    epsilon = ir.RefAttr("epsilon", "epsilon", ir.AttributeType.FLOAT)
    return body.add("normed", "LayerNormalization", x, body["gamma"], body["beta"], axis=-1, epsilon=epsilon)


def _rms_norm(body: Body, x: ir.Value) -> ir.Value:
    """RMSNormalization is an operator since opset 23 only; the runtime fuses this into one all the same."""
    epsilon = body.add("eps", "Constant", value_float=ir.RefAttr("value_float", "epsilon", ir.AttributeType.FLOAT))
    mean = body.reduce_last("mean_square", "ReduceMean", body.add("square", "Mul", x, x))
    root = body.add("root", "Sqrt", body.add("moment", "Add", mean, epsilon))
    return body.add("normed", "Mul", body.add("unit", "Div", x, root), body["gamma"])
