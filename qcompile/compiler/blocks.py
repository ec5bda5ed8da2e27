"""Blocks: the main graph, cut into consecutive pieces at narrow places.

    width(p) = number of activations made before position p and read behind it

A cut lies where the width is least within a stretch that holds one layer's worth of weighted operators:
a transformer layer, where the sequence of weights repeats, or three convolutions. Values that live longer
than a layer (masks, position tables, skips of a U-Net) do not count, since no cut avoids them; nor do
inputs of the model, initializers, shapes and indices. A unit (units.py) is never cut in two, and an
operator with bodies stays whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import is_constant, name_of
from qcompile.compiler.targets.table import Target
from qcompile.compiler.units import candidates

_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU"}

_RESIDUAL_BLOCK = 3
"""Weighted operators of one block where nothing repeats: those of a bottleneck of ResNet or MobileNet."""


@dataclass(frozen=True)
class Block:
    """Consecutive nodes of the main graph, by name.

    Attributes:
        inputs: activations the block reads and does not make, inputs of the model included.
        outputs: activations it makes that later blocks read or the model returns.
        carried: those of `outputs` that later blocks read.
    """

    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    carried: tuple[str, ...]


def cut(model: ir.Model, target: Target) -> list[Block]:
    """The blocks of the main graph, in order; every node is in exactly one."""
    graph = model.graph
    nodes = list(graph)
    last = {value: i for i, node in enumerate(nodes) for value in reads(node)}
    before = np.cumsum([0, *(_is_weighted(n) for n in nodes)])
    layer = _layer([n for n in nodes if _is_weighted(n)])
    width = np.zeros(len(nodes) + 1)
    for i, value in ((i, v) for i, node in enumerate(nodes) for v in node.outputs if v in last):
        lives = before[last[value]] - before[i + 1]
        width[i + 1 : last[value] + 1] += _weight(value, long=lives > layer.size)
    width[[*_inside_units(graph, nodes, target), len(nodes)]] = np.inf
    cuts, goal = [0], layer.start or layer.size
    while goal < before[-1]:
        stretch = np.flatnonzero((before >= goal) & (before < goal + layer.size))
        best = int(stretch[np.argmin(width[stretch])])
        if np.isfinite(width[best]):
            cuts.append(best)
        goal = (goal if layer.repeats else int(before[best])) + layer.size
    return _blocks([nodes[a:b] for a, b in pairwise([*cuts, len(nodes)])])


def cut_in_waves(model: ir.Model, blocks: Sequence[Block], layers: Collection[str]) -> list[Block]:
    """`blocks` cut further, in front of each wave of `layers` (names of nodes): no layer of a piece reads what
    another of it computes, so what a layer reads enters its piece."""
    by_name = {str(node.name): node for node in model.graph}
    pieces: list[list[ir.Node]] = []
    for block in blocks:
        inside = [by_name[name] for name in block.nodes]
        level = depths(inside, layers)
        pieces += [[n for n in inside if level[n] == i] for i in sorted(set(level.values()))]
    return _blocks(pieces)


def depths(nodes: Iterable[ir.Node], layers: Collection[str]) -> dict[ir.Node, int]:
    """How many of `layers` (names) lie on the longest way to each node, itself included; `nodes` are in order."""
    behind: dict[ir.Value, int] = {}
    found: dict[ir.Node, int] = {}
    for node in nodes:
        found[node] = max((behind.get(v, 0) for v in reads(node)), default=0) + (str(node.name) in layers)
        behind.update(dict.fromkeys(node.outputs, found[node]))
    return found


def extract(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """The part of the main graph between two sets of values, as a model; the tensors are shared, not copied.

    Nodes that were added to `model` between these values belong to it. Inputs with a default stay inputs.
    """
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    with_default = {v.name for v in model.graph.inputs if v.is_initializer()}
    graph.inputs.extend(v for name, v in graph.initializers.items() if name in with_default)
    functions = [function.clone() for function in model.functions.values()]
    return ir.Model(graph, ir_version=model.ir_version, functions=functions)


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """The values of its own graph that a node reads, in its bodies too."""
    yield from (v for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        for body in _bodies(attribute):
            for inner in body.all_nodes():
                yield from (v for v in inner.inputs if v is not None and v.graph is node.graph)


@dataclass(frozen=True)
class _Layer:
    """How many weighted operators make one layer, and how many stand before the first one.

    Attributes:
        repeats: the sequence of weights repeats with this period.
    """

    size: int
    start: int
    repeats: bool


def _layer(weighted: Sequence[ir.Node]) -> _Layer:
    """The shortest period with which at least half of the weights repeat, or the size of a residual block."""
    shapes = [(n.op_type, tuple(v.shape or ()) if (v := n.inputs[1]) is not None else ()) for n in weighted]
    for period in range(1, len(shapes) // 2 + 1):
        start, length = _longest_run([a == b for a, b in zip(shapes, shapes[period:], strict=False)])
        if length >= period and 2 * (length + period) >= len(shapes):
            layers = -(-_RESIDUAL_BLOCK // period)
            return _Layer(period * layers, start, repeats=True)
    return _Layer(_RESIDUAL_BLOCK, 0, repeats=False)


def _longest_run(flags: Sequence[bool]) -> tuple[int, int]:
    """Start and length of the first longest run of True."""
    best, start = (0, 0), 0
    for i, flag in enumerate([*flags, False]):
        if not flag:
            best = max(best, (start, i - start), key=lambda run: run[1])
            start = i + 1
    return best


def _is_weighted(node: ir.Node) -> bool:
    return node.op_type in _WEIGHTED and len(node.inputs) > 1 and is_constant(node.inputs[1])


def _inside_units(graph: ir.Graph, nodes: Sequence[ir.Node], target: Target) -> list[int]:
    """Positions between nodes of one unit."""
    index = {node: i for i, node in enumerate(nodes)}
    found: list[int] = []
    for candidate in candidates(graph, target):
        places = [index[n] for n in candidate.nodes]
        found.extend(range(min(places) + 1, max(places) + 1))
    return found


def _weight(value: ir.Value, *, long: bool) -> float:
    """1 for an activation, 0 for what does not count, infinite for what is no tensor."""
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        return np.inf
    counts = value.dtype is None or value.dtype.is_floating_point()
    return 1.0 if counts and not long and not is_constant(value) else 0.0


def _blocks(pieces: Sequence[Sequence[ir.Node]]) -> list[Block]:
    """The pieces as blocks, each of which reads only what those before it make."""
    last = {value: i for i, piece in enumerate(pieces) for node in piece for value in reads(node)}
    found = []
    for i, piece in enumerate(pieces):
        made = dict.fromkeys(v for n in piece for v in n.outputs if v.name)
        read = dict.fromkeys(v for n in piece for v in reads(n) if v not in made and not v.is_initializer())
        left = [v for v in made if v.is_graph_output() or last.get(v, i) > i]
        inputs, outputs, carried = (
            tuple(name_of(v) for v in values) for values in (read, left, [v for v in left if last.get(v, i) > i])
        )
        found.append(Block(tuple(str(n.name) for n in piece), inputs, outputs, carried))
    return _without_silent(found)


def _without_silent(blocks: Sequence[Block]) -> list[Block]:
    """Blocks of nodes that nobody reads from join the one before."""
    found: list[Block] = []
    for block in blocks:
        if block.outputs or not found:
            found.append(block)
        else:
            before = found[-1]
            found[-1] = replace(before, nodes=before.nodes + block.nodes)
    return found


def _bodies(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.is_ref():
        return []
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []
