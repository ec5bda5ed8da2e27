"""Operators that work element by element, and pools.

f(x / s) = f(x) / s   for s > 0: Relu, LeakyRelu, PRelu, maxima, means (positive homogeneity)
x * c, x + c          a constant for each channel takes the scale itself (gamma, beta, a bias)
a * b                 one factor carries it: the linear branch of a gate, never the activated one
a + b                 both terms, or none
"""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.graph import constant, is_constant
from qcompile.passes.transform.folding.moves import (
    Divide,
    Join,
    Layout,
    Move,
    Moves,
    Multiply,
    Rules,
    Through,
    collapsed,
    fitted,
    keep,
    lifted,
)

_NOT_HOMOGENEOUS = "which is not positively homogeneous"
_UNKNOWN = "whose shapes are not known"
_ONE_SCALE = "a constant that is not one value for each channel"


def _input(node: ir.Node, index: int = 0) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _pass_read(node: ir.Node, index: int, layout: Layout) -> list[Moves]:
    if index != 0:
        return keep(node, layout, "not as its data")
    return [[Join(node.outputs[0], layout)]]


def _pass_written(node: ir.Node, index: int, layout: Layout) -> list[Moves]:
    return [[Join(_input(node), layout)]] if index == 0 else keep(node, layout, "another output of it")


_PASS = Rules(_pass_read, _pass_written)


def _is_relu(node: ir.Node) -> bool:
    """A Clip from 0 up, without an upper bound."""
    low, high = (node.inputs[i] if i < len(node.inputs) else None for i in (1, 2))
    bound = constant(low)
    return high is None and bound is not None and float(bound.reshape(-1)[0]) == 0.0


_CLIP = Rules(
    lambda n, i, c: _pass_read(n, i, c) if _is_relu(n) else keep(n, c, _NOT_HOMOGENEOUS),
    lambda n, i, c: _pass_written(n, i, c) if _is_relu(n) else keep(n, c, _NOT_HOMOGENEOUS),
)


def _pool_read(node: ir.Node, index: int, layout: Layout) -> list[Moves]:
    if index != 0:
        return keep(node, layout, "not as its data")
    flat, equal = collapsed(layout, list(range(2, layout.ndim)))
    return [[equal, Join(node.outputs[0], flat)]]


def _pool_written(node: ir.Node, index: int, layout: Layout) -> list[Moves]:
    if index != 0:
        return keep(node, layout, "another output of it")
    flat, equal = collapsed(layout, list(range(2, layout.ndim)))
    return [[equal, Join(_input(node), flat)]]


_POOL = Rules(_pool_read, _pool_written)


def _takes(value: ir.Value, layout: Layout) -> bool:
    """Whether the constant has an element of its own for every channel."""
    if value.shape is None or len(value.shape) > layout.ndim:
        return False
    shape = (1,) * (layout.ndim - len(value.shape)) + tuple(value.shape)
    return all(length == 1 or shape[i] == length for i, length in enumerate(layout.shape))


def _for_constant(layout: Layout, value: ir.Value) -> Layout:
    """The layout against the shape of a constant that takes it."""
    assert value.shape is not None
    return layout.reshape(layout.shape[layout.ndim - len(value.shape) :])


def _other(node: ir.Node, index: int) -> ir.Value:
    return _input(node, 1 - index)


def _mul_read(node: ir.Node, index: int, layout: Layout) -> list[Moves]:
    other = _other(node, index)
    if node.op_type == "Div" and index == 1:
        return keep(node, layout, "as its divisor")
    if is_constant(other) and layout.size > 1 and _takes(other, layout):
        take = Divide if node.op_type == "Div" else Multiply
        return [[take(node, 1 - index, _for_constant(layout, other))]]
    result = lifted(layout, node.outputs[0])
    if result is None:
        return keep(node, layout, _UNKNOWN)
    return [[Through(node, index), Join(node.outputs[0], result)]]


def _mul_written(node: ir.Node, _: int, layout: Layout) -> list[Moves]:
    for index, value in enumerate(node.inputs):
        if value is not None and is_constant(value) and layout.size > 1 and _takes(value, layout):
            take = Multiply if node.op_type == "Div" and index == 1 else Divide
            return [[take(node, index, _for_constant(layout, value))]]
    found: list[Moves] = []
    for index in (0, 1) if node.op_type == "Mul" else (0,):
        value = _input(node, index)
        fit = None if is_constant(value) else fitted(layout, value)
        if fit is not None:
            found.append([fit[1], Through(node, index), Join(value, fit[0])])
    return found or keep(node, layout, "no factor of which can take it")


_MUL = Rules(_mul_read, _mul_written)


def _terms(node: ir.Node, layout: Layout, start: list[Move]) -> list[Moves]:
    """Every term of a sum of layout `layout` is divided."""
    moves = list(start)
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        if not is_constant(value):
            fit = fitted(layout, value)
            if fit is None:
                return keep(node, layout, _UNKNOWN)
            moves += [fit[1], Join(value, fit[0])]
        elif _takes(value, layout):
            moves.append(Divide(node, index, _for_constant(layout, value)))
        elif (array := constant(value)) is None or array.any():
            return keep(node, layout, f"which adds {_ONE_SCALE}")
    return [moves]


def _add_read(node: ir.Node, _: int, layout: Layout) -> list[Moves]:
    result = lifted(layout, node.outputs[0])
    if result is None:
        return keep(node, layout, _UNKNOWN)
    return _terms(node, result, [Join(node.outputs[0], result)])


def _add_written(node: ir.Node, _: int, layout: Layout) -> list[Moves]:
    return _terms(node, layout, [])


_ADD = Rules(_add_read, _add_written)


_INDIFFERENT = Rules(lambda node, index, layout: [[]], lambda node, index, layout: keep(node, layout, "a shape"))


POINTWISE: dict[str, Rules] = {
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu", "Identity", "Abs", "Neg"), _PASS),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _POOL),
    **dict.fromkeys(("Mul", "Div"), _MUL),
    **dict.fromkeys(("Add", "Sub", "Sum"), _ADD),
    **dict.fromkeys(("Shape", "Size"), _INDIFFERENT),
    "Clip": _CLIP,
}
