"""A linear layer on E4M3 codes of activations and weights, accumulated in float32.

    y = act((x_q w^T) * x_scale * w_scale + bias)

Products of two E4M3 numbers are exact in float32, and so they are where the CUDA provider multiplies in TF32.
"""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.operators.definition import Body, Operator
from qcompile.compiler.operators.linear import Activation, formula, operands, result, suffix, write_result

_CODES = ir.DataType.FLOAT8E4M3FN


def linear_e4m3(*, bias: bool = False, activation: Activation = "", dtype: ir.DataType = ir.DataType.FLOAT) -> Operator:
    """LinearE4M3{Bias}{Activation}{T}."""

    def write(body: Body) -> list[ir.Value]:
        x, w = (body.to_float(name, _CODES) for name in ("x_q", "w"))
        product = body.add("product", "MatMul", x, body.add("w_t", "Transpose", w, perm=[1, 0]))
        return [write_result(body, product, dtype, activation)]

    return Operator(
        name="LinearE4M3" + suffix(dtype, bias=bias, activation=activation),
        inputs=operands(_CODES, bias=bias, requant=False),
        outputs=(result(dtype, requant=False),),
        meaning=formula("x_q w^T * x_scale * w_scale", bias=bias, activation=activation),
        write=write,
        lowest_opset=19,
    )
