"""The sites of a graph: from each linear layer's input, every value that must be divided with it.

    x / s  asks its maker to divide, or to divide what it was made from, and every reader to multiply,
    or to go on with a result that is divided: until every end is a constant that takes the scale.

What cannot be scaled keeps the scale 1, and with it every channel that must have the same one; a site is
what is left. Operators answer by themselves (rules/); an operator without a rule keeps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import graphs, is_constant, is_float32, name_of
from qcompile.passes.transform.folding.moves import (
    ANY,
    KEPT,
    Divide,
    Equal,
    Join,
    Keep,
    Layout,
    Move,
    Moves,
    Multiply,
    Through,
    collapsed,
    keep,
)
from qcompile.passes.transform.folding.rules.attention import ATTENTION
from qcompile.passes.transform.folding.rules.linear import LINEAR, channel_axis, channels
from qcompile.passes.transform.folding.rules.moving import MOVING
from qcompile.passes.transform.folding.rules.norms import NORMS
from qcompile.passes.transform.folding.rules.pointwise import POINTWISE
from qcompile.passes.transform.folding.site import Factor, Family, Groups, Refusal, Site

_RULES = {**LINEAR, **ATTENTION, **NORMS, **POINTWISE, **MOVING}
_HOMOGENEOUS = {"Relu", "LeakyRelu", "PRelu", "Clip", "MaxPool"}
_DOMAINS = ("", "ai.onnx", "com.microsoft")


def find_sites(model: ir.Model) -> tuple[list[Site], list[Refusal]]:
    """Every site of `model`, in the order of the graph, and the linear layers' inputs that have none."""
    sites: list[Site] = []
    refused: list[Refusal] = []
    seen: set[ir.Value] = set()
    for graph in graphs(model):
        for node in graph:
            value = node.inputs[0] if channel_axis(node) is not None else None
            if value is None or value in seen or not is_float32(value) or value.shape is None or channels(node) < 2:
                continue
            region = _Region.around(value, node)
            if (found := region.site()) is not None:
                seen.update(v for v, layout in region.layouts.items() if region.is_open(layout))
                sites.append(found)
            else:
                seen.add(value)
                refused.append(Refusal(name_of(value), region.reason, _explicit(value)))
    return sites, refused


def insertable(refused: Sequence[Refusal]) -> list[Site]:
    """A Mul before a matrix costs little beside it; before a convolution it costs an image."""
    return [r.explicit for r in refused if r.explicit.axes[r.value] == -1]


def _explicit(value: ir.Value) -> Site:
    """The site of a Mul between `value` and the linear layers of its graph that read it."""
    found: dict[tuple[ir.Node, int], Layout] = {}
    readers = [n for n, i in value.uses() if i == 0 and channel_axis(n) is not None]
    count = max(map(channels, readers))
    for node in readers:
        if node.graph is readers[0].graph and channels(node) == count:
            layout = _start(value, node)
            moves = LINEAR[node.op_type].read(node, 0, layout)[0]
            found |= {(m.node, m.index): m.layout for m in moves if isinstance(m, Multiply)}
    groups, name = np.arange(count), name_of(value)
    return Site(
        family=Family.INSERTED,
        scales=count,
        divided=(),
        multiplied=_factors(found, lambda layout: layout - 1),
        inputs={name: groups},
        axes={name: channel_axis(readers[0]) or 0},
        values={},
        inserted=name,
    )


def _start(value: ir.Value, reader: ir.Node) -> Layout:
    """A class of its own for each channel that `reader` reads."""
    assert value.shape is not None
    shape = [1] * len(value.shape)
    shape[channel_axis(reader) or 0] = channels(reader)
    return np.arange(1, channels(reader) + 1).reshape(shape)


def _factors(taken: dict[tuple[ir.Node, int], Layout], groups: Callable[[Layout], Groups]) -> tuple[Factor, ...]:
    """The constants that take a scale, without those whose every scale is 1."""
    found = (
        Factor(str(node.name), index, groups(layout), node.op_type in LINEAR and index == 1)
        for (node, index), layout in taken.items()
    )
    return tuple(f for f in found if (f.groups >= 0).any())


@dataclass
class _Region:
    """What is divided so far.

    Attributes:
        classes: class -> its representative, the smallest of those that must be equal.
        through: product -> the input by which the scale passes it.
        tasks: operators that have yet to answer.
        reason: the first thing that kept channels from being scaled.
    """

    classes: Layout
    layouts: dict[ir.Value, Layout] = field(default_factory=dict)
    divided: dict[tuple[ir.Node, int], Layout] = field(default_factory=dict)
    multiplied: dict[tuple[ir.Node, int], Layout] = field(default_factory=dict)
    through: dict[ir.Node, int] = field(default_factory=dict)
    tasks: deque[tuple[ir.Node, Callable[[Layout], list[Moves]], ir.Value]] = field(default_factory=deque)
    reason: str = ""

    @classmethod
    def around(cls, value: ir.Value, reader: ir.Node) -> _Region:
        """The region of the channels that `reader` reads from `value`."""
        start = cls(np.arange(channels(reader) + 1))
        start.make(Join(value, _start(value, reader)))
        return start.closed()

    def is_open(self, layout: Layout) -> bool:
        return bool((self.classes[layout] != KEPT).any())

    @property
    def open(self) -> int:
        """How many classes are left."""
        return len(np.unique(self.classes[self.classes != KEPT]))

    def closed(self) -> _Region:
        """Ask operators until none is left; where there is a choice, the one that leaves most classes."""
        while self.tasks and self.open:
            node, rule, value = self.tasks.popleft()
            if not self.is_open(self.layouts[value]):
                continue
            alternatives = rule(self.layouts[value])
            if len(alternatives) > 1 and node in self.through:
                alternatives = [a for a in alternatives if Through(node, self.through[node]) in a]
            if len(alternatives) > 1:
                return max((self.copy().made(moves).closed() for moves in alternatives), key=lambda r: r.open)
            self.made(alternatives[0])
        return self

    def copy(self) -> _Region:
        return _Region(
            self.classes.copy(),
            dict(self.layouts),
            dict(self.divided),
            dict(self.multiplied),
            dict(self.through),
            self.tasks.copy(),
            self.reason,
        )

    def made(self, moves: Moves) -> _Region:
        for move in moves:
            self.make(move)
        return self

    def make(self, move: Move) -> None:
        match move:
            case Join(value, layout):
                self.join(value, layout)
            case Equal(a, b):
                self.unite(a, b)
            case Keep(layout, reason):
                self.keep(layout, reason)
            case Divide(node, index, layout):
                self.unite(self.divided.setdefault((node, index), layout), layout)
            case Multiply(node, index, layout):
                self.unite(self.multiplied.setdefault((node, index), layout), layout)
            case Through(node, index):
                if self.through.setdefault(node, index) != index:
                    for factor in node.inputs:
                        if factor in self.layouts:
                            self.keep(self.layouts[factor], f"reaches two factors of {node.op_type} '{node.name}'")

    def join(self, value: ir.Value, layout: Layout) -> None:
        if value.shape is None or len(value.shape) != layout.ndim:
            self.keep(layout, f"reaches '{value.name}', whose shape is not known")
            return
        varying = [i for i, n in enumerate(layout.shape) if n > 1 and value.shape[i] != n]
        layout, equal = collapsed(layout, varying)
        self.unite(equal.a, equal.b)
        if value in self.layouts:
            known = np.broadcast_to(self.layouts[value], np.broadcast_shapes(self.layouts[value].shape, layout.shape))
            self.unite(known, np.where(layout == ANY, known, layout))
            return
        self.layouts[value] = layout = self.named(layout)
        if not self.is_open(layout):
            return
        producer = value.producer()
        if value.is_graph_output():
            self.keep(layout, f"reaches '{value.name}', which the model returns")
        elif producer is None or is_constant(value):
            self.keep(layout, f"reaches '{value.name}', which nothing computes")
        else:
            self.ask(producer, producer.outputs.index(value), value, written=True)
        for node, index in value.uses():
            self.ask(node, index, value, written=False)

    def named(self, layout: Layout) -> Layout:
        """The layout with a new class wherever it may be any."""
        free = layout == ANY
        new = np.arange(len(self.classes), len(self.classes) + np.count_nonzero(free))
        self.classes = np.concatenate([self.classes, new])
        layout = layout.copy()
        layout[free] = new
        return layout

    def ask(self, node: ir.Node, index: int, value: ir.Value, written: bool) -> None:
        rules = _RULES.get(node.op_type) if node.domain in _DOMAINS else None
        if rules is None:
            self.tasks.append((node, partial(_no_rule, node), value))
        else:
            self.tasks.append((node, partial(rules.written if written else rules.read, node, index), value))

    def keep(self, layout: Layout, reason: str) -> None:
        if self.is_open(layout):
            self.reason = self.reason or reason
            self.unite(layout, np.array(KEPT))

    def unite(self, a: Layout, b: Layout) -> None:
        a, b = np.broadcast_arrays(self.classes[a], self.classes[b])
        apart = a != b
        for x, y in np.unique(np.stack([a[apart], b[apart]], axis=1), axis=0):
            x, y = self.classes[x], self.classes[y]
            self.classes[self.classes == max(x, y)] = min(x, y)

    def site(self) -> Site | None:
        """What is left as a site; None where no two channels may have scales of their own."""
        left = np.unique(self.classes[self.classes != KEPT])
        if len(left) < 2:
            self.reason = self.reason or "would have one scale for all its channels"
            return None
        numbers = np.full(len(self.classes), -1)
        numbers[left] = np.arange(len(left))

        def groups(layout: Layout) -> Groups:
            return numbers[self.classes[layout]]

        values = {v: groups(layout) for v, layout in self.layouts.items()}
        values = {v: found for v, found in values.items() if (found >= 0).any()}
        inputs = {}
        axes = {}
        for value in values:
            reader = next((n for n, i in value.uses() if i == 0 and channel_axis(n) is not None), None)
            if reader is not None:
                axis = channel_axis(reader) or 0
                axes[name_of(value)] = axis
                vector = np.moveaxis(values[value], axis, -1).reshape(-1, values[value].shape[axis])[0]
                inputs[name_of(value)] = np.broadcast_to(vector, (channels(reader),))
        return Site(
            family=self.family(),
            scales=len(left),
            divided=_factors(self.divided, groups),
            multiplied=_factors(self.multiplied, groups),
            inputs=inputs,
            axes=axes,
            values={name_of(v): found for v, found in values.items()},
        )

    def family(self) -> Family:
        products = {n.op_type for n in self.through if not any(is_constant(v) for v in n.inputs)}
        makers = {p.op_type for v in self.layouts if (p := v.producer()) is not None}
        if "MatMul" in products or "Attention" in makers:
            return Family.ATTENTION
        if products:
            return Family.GATE
        if not any(node.op_type in LINEAR for node, _ in self.divided):
            return Family.NORM
        return Family.HOMOGENEOUS if makers & _HOMOGENEOUS else Family.LINEAR


def _no_rule(node: ir.Node, layout: Layout) -> list[Moves]:
    return keep(node, layout, "which no scale of channels passes")
