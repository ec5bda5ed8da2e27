"""LLM.int8(): a linear layer whose rows become int8 codes without their outlier columns, which stay float.

    x_q, x_scale = QuantizeRows(x * keep)                  keep is 0 in the outlier columns, else 1
    y = act((x_q w^T) * x_scale * w_scale + bias + x_O w_O)      x_O: the outlier columns of x

All arithmetic is in float32, from left to right; y is rounded to T once. w_O is [C, N]: its product is small and
needs no tensor cores. Source: Dettmers et al., "LLM.int8()", 2022, with outlier columns that are fixed.
"""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.operators.definition import Body, Operand, Operator
from qcompile.compiler.operators.linear import BIAS, Activation, result, suffix, write_activation, write_bias
from qcompile.compiler.operators.quantize_rows import lowest_opset, write_rows

_CODES = ir.DataType.INT8


def linear_outliers(
    *, bias: bool = False, activation: Activation = "", dtype: ir.DataType = ir.DataType.FLOAT
) -> Operator:
    """LinearOutliersW8A8{Bias}{Activation}{T}."""
    inputs = [
        Operand("x", dtype, ("...", "K"), "activations"),
        Operand("keep", ir.DataType.FLOAT, ("K",), "0 for an outlier column, else 1"),
        Operand("columns", ir.DataType.INT64, ("C",), "numbers of the outlier columns"),
        Operand("w_columns", dtype, ("C", "N"), "the weight that they meet"),
        Operand("w", _CODES, ("N", "K"), "codes of the weight"),
        Operand("w_scale", ir.DataType.FLOAT, ("N",), "their scale for each output"),
    ]

    def write(body: Body) -> list[ir.Value]:
        x = body.to_float("x", dtype)
        x_q, x_scale = write_rows(body, body.add("rest", "Mul", x, body["keep"]), _CODES)
        product = body.add("product", "MatMulInteger", x_q, body.add("w_t", "Transpose", body["w"], perm=[1, 0]))
        rows = body.add("rows_scaled", "Mul", body.cast("product_float", product, ir.DataType.FLOAT), x_scale)
        y = write_bias(body, body.add("scaled", "Mul", rows, body["w_scale"]))
        taken = body.add("taken", "Gather", x, body["columns"], axis=-1)
        y = body.add("total", "Add", y, body.add("outliers", "MatMul", taken, body.to_float("w_columns", dtype)))
        return [body.of_type("rounded", write_activation(body, y, activation), dtype)]

    y = "x_q w^T * x_scale * w_scale" + (" + bias" if bias else "") + " + x[columns] w_columns"
    return Operator(
        name="LinearOutliersW8A8" + suffix(dtype, bias=bias, activation=activation),
        inputs=(*inputs, *([BIAS] if bias else [])),
        outputs=(result(dtype, requant=False),),
        meaning=f"x_q, x_scale = QuantizeRows(x * keep); y = {f'{activation.lower()}({y})' if activation else y}",
        write=write,
        lowest_opset=lowest_opset(_CODES),
    )
