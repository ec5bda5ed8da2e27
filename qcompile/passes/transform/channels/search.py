"""The groups of a model: its operators are asked in order which indices of their axes are the same channel.

    channels of one group   are written side by side by one weight, so that any may go without the others
    a channel               is every index of every axis that an operator ties to it

Inputs and outputs of the model keep their shape, as does all that bodies of control flow read, and what an operator
without a rule touches.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from qcompile.compiler.blocks import reads
from qcompile.compiler.graph import is_constant, name_of
from qcompile.passes.transform.channels.flow import Axes, Flow, Rule
from qcompile.passes.transform.channels.group import Activation, ChannelGroup, Kind, Part, Side
from qcompile.passes.transform.channels.indices import FROZEN, Ids
from qcompile.passes.transform.channels.rules.attention import ATTENTION
from qcompile.passes.transform.channels.rules.linear import LINEAR
from qcompile.passes.transform.channels.rules.moving import MOVING
from qcompile.passes.transform.channels.rules.norms import NORMS
from qcompile.passes.transform.channels.rules.pointwise import POINTWISE

_RULES = {**ATTENTION, **LINEAR, **MOVING, **NORMS, **POINTWISE}
_DOMAINS = ("", "ai.onnx", "com.microsoft")


def rule_of(node: ir.Node) -> Rule | None:
    """How channels run through `node`; None where nothing is known."""
    if node.domain not in _DOMAINS:
        return None
    return _RULES.get(f"{node.domain}.{node.op_type}", _RULES.get(node.op_type))


def channel_groups(model: ir.Model, *, width: bool = False) -> list[ChannelGroup]:
    """The groups of the main graph, in its order; names must be unique and shapes known.

    Args:
        width: with the channels of a residual stream that embeddings write or norms run over. Removing one changes
            the others.
    """
    flow = Flow(model.graph)
    for value in model.graph.inputs:
        flow.values[value] = flow.frozen(value)
    for node in model.graph:
        _walk(node, flow)
    for value in model.graph.outputs:
        flow.freeze(*(flow.values.get(value) or ()))
    if not width:
        flow.freeze(*flow.width)
    flow.decide()
    return [group for family in _families(flow) if (group := _group(flow, family)) is not None]


def _walk(node: ir.Node, flow: Flow) -> None:
    rule = rule_of(node)
    if rule is None:
        for value in reads(node):
            flow.freeze(*(flow.values.get(value) or ()))
    found = rule.flow(node, flow) if rule is not None else flow.freeze_inputs(node)
    for value, axes in zip(node.outputs, found, strict=False):
        flow.values[value] = _fitting(value, axes, flow)


def _fitting(value: ir.Value, axes: Axes | None, flow: Flow) -> Axes | None:
    """The axes of `value`, without those that its shape contradicts; the last index of one cannot go."""
    declared = flow.frozen(value) if value.shape is not None else (None,) * len(axes or ())
    if axes is None or declared is None or len(axes) != len(declared):
        flow.freeze(*(axes or ()))
        return declared
    result = []
    for found, known in zip(axes, declared, strict=True):
        fits = found is not None and (known is None or len(found) == len(known))
        if not fits or (found is not None and len(found) == 1):
            flow.freeze(found)
        result.append(found if fits else known)
    return tuple(result)


def _families(flow: Flow) -> Iterator[Ids]:
    """The channels of each group, by the class of indices that each is."""
    together = flow.indices.copy()
    written = [
        flow.indices.find(axis)
        for (operand, place), side in flow.sides.items()
        if side is Side.WRITES and (axis := flow.constants[operand][place]) is not None
    ]
    written = [live for ids in written if len(live := np.unique(ids[ids != FROZEN]))]
    for live in written:
        together.unite(live, live[:1])
    done = set[int]()
    everything = np.unique(np.concatenate(written)) if written else np.zeros(0, np.intp)
    families = together.find(everything)
    for live in written:
        family = int(together.find(live[:1])[0])
        if family not in done:
            done.add(family)
            yield everything[families == family]


def _group(flow: Flow, family: Ids) -> ChannelGroup | None:
    if len(family) < 2:
        return None

    def channels(axis: Ids | None) -> Ids | None:
        if axis is None:
            return None
        ids = flow.indices.find(axis)
        places = np.searchsorted(family, ids)
        found = np.where(np.append(family, -1)[places] == ids, places, -1)
        return found if (found >= 0).any() else None

    parts = tuple(
        Part(str(node.name), index, place, found, flow.sides.get(((node, index), place), Side.BESIDE))
        for (node, index), axes in flow.constants.items()
        for place, axis in enumerate(axes)
        if (found := channels(axis)) is not None
    )
    if not any(part.side is Side.READS for part in parts):
        return None  # where only activations multiply each other, nothing tells what a channel is worth
    activations = tuple(
        Activation(name_of(value), place, found)
        for value, axes in flow.values.items()
        if not is_constant(value)
        for place, axis in enumerate(axes or ())
        if (found := channels(axis)) is not None
    )
    return ChannelGroup(_kind(flow, family), len(family), parts, activations)


def _kind(flow: Flow, family: Ids) -> Kind:
    def meets(axes: list[Ids]) -> bool:
        return any(np.isin(flow.indices.find(axis), family).any() for axis in axes)

    if meets(flow.heads):
        return Kind.HEADS
    if meets(flow.width):
        return Kind.WIDTH
    return Kind.FILTERS if meets(flow.filters) else Kind.NEURONS
