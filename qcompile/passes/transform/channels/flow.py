"""What operators say about channels while they are walked through: which indices are the same channel, which stay.

An index of an axis is a class (indices.py). Axes that are not known to have a fixed size can lose nothing: None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.graph import is_constant
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.transform.channels.group import Side
from qcompile.passes.transform.channels.indices import FROZEN, Ids, Indices

Axis = Ids | None
Axes = tuple[Axis, ...]
Operand = tuple[ir.Node, int]
"""An input of a node."""


class Flow:
    """Channels in one graph, operator by operator in its order.

    Attributes:
        values: the axes of what is computed.
        constants: the axes of constants, by their reader: a row that several nodes read is copied when it must be.
        sides: what constants do along an axis; left out where they stand beside the channels.
        width: channels over which a mean or a variance is taken, which is another without one of them, or that a
            table of embeddings writes.
        heads: what else a softmax has axes for than what it runs along.
        filters: what convolutions write.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.indices = Indices()
        self.values: dict[ir.Value, Axes | None] = {}
        self.constants: dict[Operand, Axes] = {}
        self.sides: dict[tuple[Operand, int], Side] = {}
        self.width: list[Ids] = []
        self.heads: list[Ids] = []
        self.filters: list[Ids] = []
        self._graph = graph
        self._shared: dict[ir.Value, Axes] = {}
        self._splits: list[tuple[list[Ids], list[Ids]]] = []

    def axes(self, node: ir.Node, index: int) -> Axes | None:
        """The axes of an input; None where it is left out or nothing is known of it."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None or not is_constant(value):
            return self.values.get(value) if value is not None else None
        if (node, index) not in self.constants:
            if len(value.uses()) == 1 or _is_row(value):
                self.constants[node, index] = self._of_constant(value)
            else:  # a tied matrix stays tied
                self.constants[node, index] = self._shared.setdefault(value, self._of_constant(value))
        return self.constants[node, index]

    def _of_constant(self, value: ir.Value) -> Axes:
        assert value.shape is not None
        if any(reader.graph is not self._graph for reader, _ in value.uses()) or value.is_graph_output():
            return self.frozen(value) or ()
        return tuple(self.fresh(int(size)) for size in value.shape.numpy())

    def fresh(self, size: int) -> Ids:
        """New channels along an axis; one alone could never go."""
        return self.indices.fresh(size) if size > 1 else np.full(size, FROZEN)

    def frozen(self, value: ir.Value) -> Axes | None:
        """Axes along which nothing can be removed."""
        if value.shape is None:
            return None
        return tuple(np.full(size, FROZEN) if isinstance(size, int) else None for size in value.shape)

    def freeze(self, *axes: Axis) -> None:
        """Nothing can be removed along these."""
        for axis in axes:
            if axis is not None:
                self.indices.unite(axis, np.array(FROZEN))

    def freeze_inputs(self, node: ir.Node) -> list[Axes | None]:
        """Nothing can be removed from what `node` reads, nor from what it computes."""
        for index in range(len(node.inputs)):
            self.freeze(*(self.axes(node, index) or ()))
        return [self.frozen(v) for v in node.outputs]

    def join(self, *axes: Axis) -> Axis:
        """Axes of one size whose indices at the same place are the same channel."""
        first = axes[0]
        if first is None or any(a is None or len(a) != len(first) for a in axes):
            self.freeze(*axes)
            return None
        for other in axes[1:]:
            assert other is not None
            self.indices.unite(first, other)
        return first

    def broadcast(self, *operands: Axes) -> Axes:
        """The axes of a result in which operands meet element by element."""
        result: list[Axis] = []
        for place in range(1, max(map(len, operands)) + 1):
            met = [axes[-place] for axes in operands if len(axes) >= place]
            wide = [axis for axis in met if axis is None or len(axis) != 1]
            result.insert(0, self.join(*wide) if wide else met[0])
        return tuple(result)

    def regroup(self, before: Sequence[Ids], after: Sequence[Ids]) -> None:
        """The same elements, cut into axes in two ways; along which of them channels run is left open until
        `decide`."""
        self._splits.append((list(before), list(after)))

    def decide(self) -> None:
        """Let channels run along one axis on either side of each regrouping, and the other axes keep their size: along
        heads, the outermost if they are two axes, else where most channels can go one by one."""
        waiting = self._splits
        while waiting:  # what one decides tells of others where heads are
            of_heads = [self._is_heads(*before, *after) for before, after in waiting]
            for split, first in zip(waiting, of_heads, strict=True):
                if first or not any(of_heads):
                    self._decide(*split)
            waiting = [split for split, first in zip(waiting, of_heads, strict=True) if any(of_heads) and not first]

    def _decide(self, before: list[Ids], after: list[Ids]) -> None:
        pairs = [(i, j) for j, i in product(range(len(after)), range(len(before)))]
        live = {(i, j): count for i, j in pairs if (count := self._live(before, after, i, j)) > 1}
        if not live:
            self.freeze(*before, *after)
            return
        heads = [(i, j) for i, j in live if self._is_heads(before[i], after[j])]
        i, j = heads[0] if heads else max(live, key=lambda pair: live[pair])
        self.indices.unite(_spread(before, i), _spread(after, j))
        self.freeze(*(axis for k, axis in enumerate(before) if k != i))
        self.freeze(*(axis for k, axis in enumerate(after) if k != j))

    def _live(self, before: list[Ids], after: list[Ids], i: int, j: int) -> int:
        """How many channels can go where they run along axis `i` before and `j` after."""
        trial = self.indices.copy()
        trial.unite(_spread(before, i), _spread(after, j))
        return trial.live(before[i])

    def _is_heads(self, *axes: Ids) -> bool:
        heads = self.indices.find(np.concatenate(self.heads)) if self.heads else np.zeros(0, np.intp)
        return bool(np.isin(self.indices.find(np.concatenate(axes)), heads[heads != FROZEN]).any())


def _spread(axes: list[Ids], place: int) -> Ids:
    """For each element of a tensor with these axes, its index along one of them."""
    shape = [1] * len(axes)
    shape[place] = -1
    return np.broadcast_to(axes[place].reshape(shape), [len(axis) for axis in axes]).reshape(-1)


def _is_row(value: ir.Value) -> bool:
    return value.shape is not None and sum(size != 1 for size in value.shape) <= 1


Mask = npt.NDArray[np.bool_]


class Kept:
    """What is left along the axes from which channels were removed: True for every index that stays."""

    def __init__(self) -> None:
        self._masks: dict[ir.Value | Operand, dict[int, Mask]] = {}

    def drop(self, of: ir.Value | Operand, axis: int, gone: Mask) -> None:
        """Along `axis` of a computed value, or of a constant as one node reads it, the indices `gone` go."""
        masks = self._masks.setdefault(of, {})
        masks[axis] = masks.get(axis, True) & ~gone

    def masks(self, of: ir.Value | Operand | None) -> dict[int, Mask]:
        """By axis; empty where nothing goes."""
        return self._masks.get(of, {}) if of is not None else {}

    def __iter__(self) -> Iterator[tuple[ir.Value | Operand, dict[int, Mask]]]:
        return iter(self._masks.items())


Resize = Callable[[ir.Node, Kept, Names], None]


@dataclass(frozen=True)
class Rule:
    """How channels run through an operator.

    Attributes:
        flow: tells a Flow which indices of the operands are the same; returns the axes of the results.
        resize: corrects sizes that the node holds as attributes or constants, when channels are gone.
    """

    flow: Callable[[ir.Node, Flow], Sequence[Axes | None]]
    resize: Resize | None = None
