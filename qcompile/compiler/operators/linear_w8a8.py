"""A linear layer on int8 codes of activations and weights: the product is an exact int32.

y = act((x_q w^T) * x_scale * w_scale + bias)
"""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.operators.definition import Body, Operator
from qcompile.compiler.operators.linear import Activation, formula, operands, result, suffix, write_result


def linear_w8a8(
    *,
    bias: bool = False,
    activation: Activation = "",
    dtype: ir.DataType = ir.DataType.FLOAT,
    requant: bool = False,
) -> Operator:
    """LinearW8A8{Bias}{Activation}{T|Requant}: Requant gives int8 codes of the result, whatever `dtype` is."""

    def write(body: Body) -> list[ir.Value]:
        product = body.add(
            "product", "MatMulInteger", body["x_q"], body.add("w_t", "Transpose", body["w"], perm=[1, 0])
        )
        return [write_result(body, body.cast("product_float", product, ir.DataType.FLOAT), dtype, activation)]

    return Operator(
        name="LinearW8A8" + suffix(dtype, bias=bias, activation=activation, requant=requant),
        inputs=operands(ir.DataType.INT8, bias=bias, requant=requant),
        outputs=(result(dtype, requant=requant),),
        meaning=formula("x_q w^T * x_scale * w_scale", bias=bias, activation=activation, requant=requant),
        write=write,
    )
