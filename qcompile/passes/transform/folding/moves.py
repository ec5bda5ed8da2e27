"""What the rules of operators answer when a scale reaches them, as plain data.

A layout gives each channel of a value the number of a class; channels of one class share a scale, and
class KEPT keeps the scale 1. It has the rank of its value, and length 1 along axes where nothing varies.
ANY stands where an operator says nothing: the other parts of a Concat.
A rule answers with alternatives; each is a list of moves that must all be made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Layout = npt.NDArray[np.intp]

KEPT = 0
ANY = -1


@dataclass(frozen=True, eq=False)
class Join:
    """`value` is divided, too."""

    value: ir.Value
    layout: Layout


@dataclass(frozen=True, eq=False)
class Equal:
    """The classes of `a` and `b`, which broadcast, become the same."""

    a: Layout
    b: Layout


@dataclass(frozen=True, eq=False)
class Keep:
    """These channels cannot be scaled."""

    layout: Layout
    reason: str


@dataclass(frozen=True, eq=False)
class Divide:
    """The constant input `index` of `node` is divided."""

    node: ir.Node
    index: int
    layout: Layout


@dataclass(frozen=True, eq=False)
class Multiply:
    """The constant input `index` of `node` is multiplied."""

    node: ir.Node
    index: int
    layout: Layout


@dataclass(frozen=True)
class Through:
    """The scale passes a product by its input `index`, and so by no other."""

    node: ir.Node
    index: int


Move = Join | Equal | Keep | Divide | Multiply | Through
Moves = list[Move]
Rule = Callable[[ir.Node, int, Layout], list[Moves]]
"""(node, position of the value among its inputs or outputs, layout of the value) -> alternatives."""


@dataclass(frozen=True)
class Rules:
    """What an operator does with a scale on one of its inputs (`read`) or of its outputs (`written`)."""

    read: Rule
    written: Rule


def keep(node: ir.Node, layout: Layout, why: str) -> list[Moves]:
    return [[Keep(layout, f"reaches {node.op_type} '{node.name}', {why}")]]


def along(layout: Layout, axis: int, size: int) -> tuple[Layout, Equal]:
    """The layout as a vector of `size` classes along `axis`, where it may not vary along other axes."""
    rows = np.moveaxis(layout, axis, -1).reshape(-1, layout.shape[axis])
    return np.broadcast_to(rows[0], (size,)), Equal(rows, rows[:1])


def collapsed(layout: Layout, axes: list[int]) -> tuple[Layout, Equal]:
    """The layout without variation along `axes`, which keep length 1."""
    first = layout
    for axis in axes:
        first = first.take([0], axis)
    return first, Equal(layout, first)


def fitted(layout: Layout, value: ir.Value) -> tuple[Layout, Equal] | None:
    """The layout of an operand that broadcasts into a result of layout `layout`; None when its shape is unknown."""
    if value.shape is None:
        return None
    shape = value.shape
    extra = layout.ndim - len(shape)
    if extra < 0:
        return None
    small = [i for i in range(layout.ndim) if i < extra or shape[i - extra] == 1]
    first, equal = collapsed(layout, small)
    return first.reshape(first.shape[extra:]), equal


def lifted(layout: Layout, value: ir.Value) -> Layout | None:
    """The layout of a result into which an operand of layout `layout` broadcasts."""
    if value.shape is None or len(value.shape) < layout.ndim:
        return None
    return layout.reshape((1,) * (len(value.shape) - layout.ndim) + layout.shape)
