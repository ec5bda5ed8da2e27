"""A linear layer on float activations and 4-bit weights, which have a scale for each block along K.

w' = (w - w_zero) * w_scale, rounded to T      block j of a row holds columns j B .. (j + 1) B - 1
y  = x w'^T + bias                             accumulated in float32, rounded to T once
"""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.operators.definition import FLOAT_TYPES, Attribute, Body, Operand, Operator
from qcompile.compiler.operators.linear import BIAS, result, write_bias

BLOCK_SIZES = (32, 64, 128)


def linear_w4a16(*, zero: bool = False, bias: bool = False, dtype: ir.DataType = ir.DataType.FLOAT16) -> Operator:
    """LinearW4A16{Zero}{Bias}{T}: int4 codes, or with Zero uint4 codes and a zero point for each block."""
    codes = ir.DataType.UINT4 if zero else ir.DataType.INT4
    inputs = [
        Operand("x", dtype, ("...", "K"), "activations"),
        Operand("w", codes, ("N", "K"), "codes of the weight"),
        Operand("w_scale", ir.DataType.FLOAT16, ("N", "K/B"), "their scale for each block"),
    ]
    if zero:
        inputs.append(Operand("w_zero", codes, ("N", "K/B"), "their zero point for each block"))

    def write(body: Body) -> list[ir.Value]:
        scale = body.to_float("w_scale", ir.DataType.FLOAT16)
        codes_and_scale = [body["w"], scale, *([body["w_zero"]] if zero else [])]
        block_size = ir.RefAttr("block_size", "block_size", ir.AttributeType.INT)
        w = body.add("w_exact", "DequantizeLinear", *codes_and_scale, axis=1, block_size=block_size)
        if dtype is not ir.DataType.FLOAT:
            w = body.cast("w_float", body.cast("w_rounded", w, dtype), ir.DataType.FLOAT)
        x = body.to_float("x", dtype)
        y = write_bias(body, body.add("product", "MatMul", x, body.add("w_t", "Transpose", w, perm=[1, 0])))
        return [body.of_type("rounded", y, dtype)]

    return Operator(
        name="LinearW4A16" + ("Zero" if zero else "") + ("Bias" if bias else "") + FLOAT_TYPES[dtype],
        inputs=(*inputs, *([BIAS] if bias else [])),
        outputs=(result(dtype, requant=False),),
        meaning=f"y = x ({'(w - w_zero)' if zero else 'w'} * w_scale)^T{' + bias' if bias else ''}",
        write=write,
        attributes=(Attribute("block_size", ir.AttributeType.INT, "B, columns that share a scale: 32, 64 or 128"),),
        lowest_opset=21,
    )
