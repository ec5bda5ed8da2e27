"""Normalizations begin a scale: gamma / s and beta / s make x / s. None passes through one.

Written out in single operators (x * rsqrt(mean(x^2) + eps) * w) they need no rule of their own: the last
Mul and Add hold gamma and beta (pointwise.py).
"""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.graph import is_constant
from qcompile.passes.transform.folding.moves import Divide, Layout, Move, Moves, Rules, along, keep

_PARAMETERS = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
}
"""Positions of gamma and beta, one value for each channel."""

_ON_AXIS_1 = {"BatchNormalization", "InstanceNormalization", "GroupNormalization"}


def _read(node: ir.Node, _: int, layout: Layout) -> list[Moves]:
    return keep(node, layout, "which no scale of channels passes")


def _written(node: ir.Node, index: int, layout: Layout) -> list[Moves]:
    if index != 0:
        return keep(node, layout, "another output of it")
    given = [i for i in _PARAMETERS[node.op_type] if i < len(node.inputs) and node.inputs[i] is not None]
    constants = [node.inputs[i] for i in given]
    if not given or any(not is_constant(v) or v is None or v.shape is None for v in constants):
        return keep(node, layout, "whose gamma or beta is not a constant")
    axis = 1 if node.op_type in _ON_AXIS_1 else layout.ndim - 1
    shape = constants[0].shape.numpy() if constants[0] is not None and constants[0].shape is not None else ()
    if len(shape) != 1 or (shape[0] not in (layout.shape[axis], 1) and layout.shape[axis] != 1):
        return keep(node, layout, "whose gamma is not one value for each channel")
    vector, equal = along(layout, axis, int(shape[0]))
    moves: list[Move] = [equal, *(Divide(node, i, vector) for i in given)]
    return [moves]


NORMS = dict.fromkeys(_PARAMETERS, Rules(_read, _written))
