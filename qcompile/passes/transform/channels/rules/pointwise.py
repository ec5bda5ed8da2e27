"""Operators that treat every element alike: operands broadcast, and channels meet one by one."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.passes.transform.channels.flow import Axes, Flow, Rule

_OPERATORS = (
    "Abs", "Add", "And", "BiasGelu", "BitShift", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Div", "Dropout",
    "Elu", "Equal", "Erf", "Exp", "FastGelu", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid",
    "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min",
    "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "QuickGelu", "Reciprocal", "Relu", "Round", "Selu",
    "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu",
    "Where", "Xor",
)  # fmt: skip


def _flow(node: ir.Node, flow: Flow) -> list[Axes | None]:
    operands = [flow.axes(node, i) for i, v in enumerate(node.inputs) if v is not None]
    known = [axes for axes in operands if axes is not None]
    if len(known) < len(operands):
        return flow.freeze_inputs(node)
    return [flow.broadcast(*known)] * len(node.outputs)


POINTWISE = dict.fromkeys(_OPERATORS, Rule(_flow))
