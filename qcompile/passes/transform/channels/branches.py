"""Whole blocks: the branch of a residual sum, which goes with all that only it reads.

    y = x + f(x)   ->   y = x

A branch is closed: every operator on the way from x to f(x) is there for it alone, so that none is left behind
half. One that fills a cache is not.
Source: Veit et al. 2016 (arXiv:1605.06431) on networks without single branches; Men et al. 2024 (arXiv:2403.03853)
for decoders.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from qcompile.compiler.blocks import reads
from qcompile.compiler.provenance import stamp
from qcompile.compiler.roles import has_weight
from qcompile.errors import PassError
from qcompile.passes.prepare.surgery import bypass, remove_unread


@dataclass(frozen=True)
class Branch:
    """One branch of a residual sum.

    Attributes:
        sum: name of the Add.
        kept: which of its operands stays.
        nodes: names of what goes besides, in the order of the graph.
    """

    sum: str
    kept: int
    nodes: tuple[str, ...]


def residual_branches(model: ir.Model) -> list[Branch]:
    """The branches of the main graph that hold weights, in its order."""
    everything = list(model.graph)
    found = []
    for place, node in enumerate(everything):
        if node.op_type != "Add" or node.domain != "" or not _same_shape(node):
            continue
        for kept in (0, 1):
            way = _way(everything[:place], node.inputs[kept], node.inputs[1 - kept])
            alone = _alone(everything[:place], node, kept) if way else []
            if way and way <= set(alone) and any(has_weight(n) for n in alone) and _may_end(node, kept):
                found.append(Branch(str(node.name), kept, tuple(str(n.name) for n in alone)))
    return found


def remove_branches(model: ir.Model, branches: Iterable[Branch], made_by: str) -> None:
    """Let the readers of each sum read what it was added to; every one of them is stamped `made_by`.

    Raises:
        PassError: nothing would be left between an input and an output of the model.
    """
    nodes = {str(n.name): n for n in model.graph}
    for branch in branches:
        node = nodes[branch.sum]
        kept, readers = node.inputs[branch.kept], [reader for reader, _ in node.outputs[0].uses()]
        assert kept is not None
        if not bypass(node, kept):
            raise PassError("without this branch the model would return what it is given", where=f"node '{node.name}'")
        for reader in readers:
            stamp(reader, made_by, [reader])
    remove_unread(model.graph)


def _may_end(node: ir.Node, kept: int) -> bool:
    """Whether the model could return the operand, where it returns the sum."""
    value = node.inputs[kept]
    returned = node.outputs[0].is_graph_output()
    return not returned or (value is not None and value.producer() is not None and not value.is_graph_output())


def _same_shape(node: ir.Node) -> bool:
    """Whether neither operand of an Add is stretched to fit the other."""
    shapes = [v.shape for v in (*node.inputs, *node.outputs) if v is not None]
    if any(shape is None or len(shape) != len(shapes[0] or ()) for shape in shapes):
        return False
    sizes = [[size if isinstance(size, int) else None for size in shape] for shape in shapes if shape is not None]
    return all(size == sizes[0] for size in sizes)


def _way(before: list[ir.Node], source: ir.Value | None, goal: ir.Value | None) -> set[ir.Node]:
    """The nodes that compute `goal` from `source`; none where it is not computed from it. Its size alone is no way."""
    needed, made = {goal}, {source}
    wanted: list[ir.Node] = []
    for node in reversed(before):
        if not needed.isdisjoint(node.outputs):
            needed.update(reads(node))
            wanted.insert(0, node)
    way = set()
    for node in wanted:
        if node.op_type != "Shape" and not made.isdisjoint(reads(node)):
            made.update(node.outputs)
            way.add(node)
    return way if goal in made else set()


def _alone(before: list[ir.Node], node: ir.Node, kept: int) -> list[ir.Node]:
    """What nobody would read if `node` only had its operand `kept`."""
    gone: dict[ir.Node, None] = {}
    for other in reversed(before):
        uses = [use for v in other.outputs for use in v.uses()]
        unread = all(reader in gone or (reader is node and index != kept) for reader, index in uses)
        if unread and not any(v.is_graph_output() for v in other.outputs):
            gone[other] = None
    return list(reversed(gone))
