"""Multiply-accumulates of a model, as a function of the channels that are left.

    a weight          positions * (entries of the weight)        positions: results / outputs of the weight
    two activations   results * (length of what is summed over)

Every factor is the size of an axis, so the count after removing channels is a product of shares of axes. Convolutions
and matrix products are counted; what else there is takes no multiplications worth mentioning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.graph import is_constant, name_of
from qcompile.compiler.tensor_shapes import Shape
from qcompile.passes.transform.channels.group import ChannelGroup

Gone = Mapping[int, npt.NDArray[np.intp]]
"""Channels that are removed, by the number of their group."""

_Axis = tuple[str, int]
"""Of a weight, by the name of its node, or of an activation, by its own name."""


@dataclass(frozen=True)
class Macs:
    """The count of one model on one sample.

    Attributes:
        products: the count of each product, and the axes that it is proportional to.
        sizes: of these axes.
        runs: how many indices of an axis each channel of a group has.
    """

    products: list[tuple[float, list[_Axis]]]
    sizes: dict[_Axis, int]
    runs: list[dict[_Axis, npt.NDArray[np.intp]]]

    @classmethod
    def of(cls, model: ir.Model, groups: Sequence[ChannelGroup], shapes: Mapping[str, Shape]) -> Macs:
        """The count of the main graph.

        Args:
            shapes: of `operands`.
        """
        runs: list[dict[_Axis, npt.NDArray[np.intp]]] = []
        sizes: dict[_Axis, int] = {}
        for group in groups:
            found: dict[_Axis, npt.NDArray[np.intp]] = {}
            named = [((p.node, p.axis), p.channels) for p in group.parts if p.index == 1]
            for axis, channels in (*named, *(((a.value, a.axis), a.channels) for a in group.activations)):
                found[axis] = np.bincount(channels[channels >= 0], minlength=group.size)
                sizes[axis] = len(channels)
            runs.append(found)
        done = counts(model, shapes)
        return cls(
            [(done[str(n.name)], [a for a in _axes(n, shapes) if a in sizes]) for n in products(model)], sizes, runs
        )

    def total(self, gone: Gone) -> float:
        """What is left of the count."""
        lost: dict[_Axis, int] = defaultdict(int)
        for group, channels in gone.items():
            for axis, run in self.runs[group].items():
                lost[axis] += int(run[channels].sum())
        return sum(count * float(np.prod([1 - lost[a] / self.sizes[a] for a in axes])) for count, axes in self.products)

    def saved(self, group: int) -> float:
        """What one channel of a group saves while all others are there."""
        return self.total({}) - self.total({group: np.array([0])})


def counts(model: ir.Model, shapes: Mapping[str, Shape]) -> dict[str, float]:
    """The count of each product of the main graph, by node.

    Args:
        shapes: of `operands`.
    """
    return {str(node.name): _COUNTS[node.op_type](node, shapes) for node in products(model)}


def products(model: ir.Model) -> Iterator[ir.Node]:
    """The convolutions and matrix products of the main graph that read an activation."""
    for node in model.graph:
        if node.domain in ("", "ai.onnx") and node.op_type in _COUNTS and not is_constant(node.inputs[0]):
            yield node


def operands(model: ir.Model) -> list[ir.Value]:
    """The activations whose shapes a count needs."""
    return [
        v
        for node in products(model)
        for v in (*node.inputs[:2], node.outputs[0])
        if v is not None and not is_constant(v)
    ]


def _of_conv(node: ir.Node, shapes: Mapping[str, Shape]) -> float:
    weight = _shape(node, 1, shapes)
    return float(np.prod(shapes[name_of(node.outputs[0])])) * float(np.prod(weight[1:]))


def _of_transposed_conv(node: ir.Node, shapes: Mapping[str, Shape]) -> float:
    return float(np.prod(_shape(node, 0, shapes))) * float(np.prod(_shape(node, 1, shapes)[1:]))


def _of_product(node: ir.Node, shapes: Mapping[str, Shape]) -> float:
    summed = _shape(node, 0, shapes)[0 if node.attributes.get_int("transA", 0) else -1]
    return float(np.prod(shapes[name_of(node.outputs[0])])) * summed


_COUNTS: dict[str, Callable[[ir.Node, Mapping[str, Shape]], float]] = {
    "Conv": _of_conv,
    "ConvTranspose": _of_transposed_conv,
    "Gemm": _of_product,
    "MatMul": _of_product,
}


def _axes(node: ir.Node, shapes: Mapping[str, Shape]) -> list[_Axis]:
    """The axes whose sizes are factors of the count."""
    if is_constant(node.inputs[1]):
        return [(str(node.name), axis) for axis in range(len(_shape(node, 1, shapes)))]
    left = node.inputs[0]
    assert left is not None
    result = node.outputs[0]
    own = [(name_of(result), axis) for axis in range(len(shapes[name_of(result)]))]
    return [*own, (name_of(left), len(shapes[name_of(left)]) - 1)]


def _shape(node: ir.Node, index: int, shapes: Mapping[str, Shape]) -> Shape:
    value = node.inputs[index]
    assert value is not None
    if value.shape is not None and is_constant(value):
        return tuple(int(size) for size in value.shape.numpy())
    return shapes[name_of(value)]
