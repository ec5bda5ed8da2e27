"""Linear layers whose weight has at most two values other than 0 among every four along K.

    y = act(x w^T + bias)                              float16 or bfloat16, accumulated in float32
    y = act((x_q w^T) * x_scale * w_scale + bias)      on codes, exactly as without the pattern

The weight is stored whole; packing it is a matter of the kernel. The body asks nothing of the pattern.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from qcompile.compiler.operators.definition import Body, Operand, Operator
from qcompile.compiler.operators.linear import (
    BIAS,
    Activation,
    formula,
    result,
    suffix,
    write_activation,
    write_bias,
)
from qcompile.compiler.operators.linear_e4m3 import linear_e4m3
from qcompile.compiler.operators.linear_w8a8 import linear_w8a8

TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_PATTERN = ", with the 2:4 pattern along K"


def linear24(*, bias: bool = False, activation: Activation = "", dtype: ir.DataType = ir.DataType.FLOAT16) -> Operator:
    """Linear24{Bias}{Activation}{Fp16|Bf16}."""
    assert dtype in TYPES, f"sparse tensor cores multiply no {dtype.name}"
    inputs = [
        Operand("x", dtype, ("...", "K"), "activations"),
        Operand("w", dtype, ("N", "K"), f"weight{_PATTERN}"),
    ]

    def write(body: Body) -> list[ir.Value]:
        x, w = (body.to_float(name, dtype) for name in ("x", "w"))
        product = body.add("product", "MatMul", x, body.add("w_t", "Transpose", w, perm=[1, 0]))
        y = write_activation(body, write_bias(body, product), activation)
        return [body.of_type("rounded", y, dtype)]

    return Operator(
        name="Linear24" + suffix(dtype, bias=bias, activation=activation),
        inputs=(*inputs, *([BIAS] if bias else [])),
        outputs=(result(dtype, requant=False),),
        meaning=formula("x w^T", bias=bias, activation=activation),
        write=write,
    )


def linear24_w8a8(
    *,
    bias: bool = False,
    activation: Activation = "",
    dtype: ir.DataType = ir.DataType.FLOAT,
    requant: bool = False,
) -> Operator:
    """Linear24W8A8{Bias}{Activation}{T|Requant}: operands and body of LinearW8A8."""
    return _sparse(linear_w8a8(bias=bias, activation=activation, dtype=dtype, requant=requant))


def linear24_e4m3(
    *, bias: bool = False, activation: Activation = "", dtype: ir.DataType = ir.DataType.FLOAT
) -> Operator:
    """Linear24E4M3{Bias}{Activation}{T}: operands and body of LinearE4M3."""
    return _sparse(linear_e4m3(bias=bias, activation=activation, dtype=dtype))


def _sparse(dense: Operator) -> Operator:
    """The same operator, told that its weight has the pattern."""
    inputs = tuple(replace(i, meaning=i.meaning + _PATTERN) if i.name == "w" else i for i in dense.inputs)
    return replace(dense, name=dense.name.replace("Linear", "Linear24", 1), inputs=inputs)
