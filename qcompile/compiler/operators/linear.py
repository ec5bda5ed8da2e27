"""What the linear layers on codes share: their operands, and what follows the product.

    y = act(product * x_scale * w_scale + bias)      float32, from left to right

Weights are [N, K], K contiguous, as tensor cores read them; a body transposes them, which the runtime does once
when the weight is a constant. Gelu is x (1 + erf(x / sqrt 2)) / 2, Silu is x sigmoid(x).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import onnx_ir as ir

from qcompile.compiler.operators.definition import FLOAT_TYPES, Body, Operand

Activation = Literal["", "Relu", "Gelu", "Silu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

BIAS = Operand("bias", ir.DataType.FLOAT, ("N",), "added to each row")
Y_SCALE = Operand("y_scale", ir.DataType.FLOAT, ("1",), "scale of the result")


def operands(codes: ir.DataType, *, bias: bool, requant: bool, pattern: str = "") -> tuple[Operand, ...]:
    """The inputs of a linear layer on codes; `pattern` is said of the weight."""
    inputs = [
        Operand("x_q", codes, ("...", "K"), "codes of the activations"),
        Operand("x_scale", ir.DataType.FLOAT, ("...", "1"), "their scales", or_one=True),
        Operand("w", codes, ("N", "K"), f"codes of the weight{pattern}"),
        Operand("w_scale", ir.DataType.FLOAT, ("N",), "their scale for each output"),
    ]
    return (*inputs, *([BIAS] if bias else []), *([Y_SCALE] if requant else []))


def result(dtype: ir.DataType, *, requant: bool) -> Operand:
    """The output: float of type `dtype`, or int8 codes."""
    if requant:
        return Operand("y_q", ir.DataType.INT8, ("...", "N"), "codes of the result")
    return Operand("y", dtype, ("...", "N"), "the result")


def suffix(dtype: ir.DataType, *, bias: bool, activation: Activation, requant: bool = False) -> str:
    """The end of the name of a variant."""
    return ("Bias" if bias else "") + activation + ("Requant" if requant else FLOAT_TYPES[dtype])


def formula(product: str, *, bias: bool, activation: Activation, requant: bool = False) -> str:
    """The meaning of a variant."""
    inner = product + (" + bias" if bias else "")
    inner = f"{activation.lower()}({inner})" if activation else inner
    return f"y_q = round({inner} / y_scale)" if requant else f"y = {inner}"


def write_result(body: Body, product: ir.Value, dtype: ir.DataType, activation: Activation) -> ir.Value:
    """What follows a float32 product of codes."""
    rows = body.add("rows_scaled", "Mul", product, body["x_scale"])
    y = body.add("scaled", "Mul", rows, body["w_scale"])
    y = write_activation(body, write_bias(body, y), activation)
    if "y_scale" not in body:
        return body.of_type("rounded", y, dtype)
    zero = body.constant("zero", [0], ir.DataType.INT8)
    return body.add("codes", "QuantizeLinear", y, body["y_scale"], zero)


def write_bias(body: Body, y: ir.Value) -> ir.Value:
    return body.add("biased", "Add", y, body["bias"]) if "bias" in body else y


def write_activation(body: Body, y: ir.Value, activation: Activation) -> ir.Value:
    if activation == "Relu":
        return body.add("activated", "Relu", y)
    if activation == "Silu":
        return body.add("activated", "Mul", y, body.add("gate", "Sigmoid", y))
    if activation == "Gelu":
        erf = body.add("erf", "Erf", body.add("standard", "Div", y, body.constant("sqrt_2", math.sqrt(2.0))))
        twice = body.add("twice", "Mul", y, body.add("above", "Add", erf, body.constant("one", 1.0)))
        return body.add("activated", "Mul", twice, body.constant("half", 0.5))
    return y
