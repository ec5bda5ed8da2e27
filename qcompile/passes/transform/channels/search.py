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
from qcompile.compiler.graph import name_of
from qcompile.passes.transform.channels.flow import Axes, Flow, Rule
from qcompile.passes.transform.channels.group import Activation, ChannelGroup, Kind, Part, Side
from qcompile.passes.transform.channels.indices import FROZEN, Ids
from qcompile.passes.transform.channels.rules.attention import ATTENTION
from qcompile.passes.transform.channels.rules.images import IMAGES
from qcompile.passes.transform.channels.rules.linear import LINEAR
from qcompile.passes.transform.channels.rules.moving import MOVING
from qcompile.passes.transform.channels.rules.norms import NORMS
from qcompile.passes.transform.channels.rules.pointwise import POINTWISE

_RULES = {**ATTENTION, **IMAGES, **LINEAR, **MOVING, **NORMS, **POINTWISE}
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
    return list(_groups(flow))


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


class _Families:
    """The classes of indices that are channels, by group: those side by side along an axis that a weight writes.

    Attributes:
        classes: for each group its classes, in the order of its channels.
    """

    def __init__(self, flow: Flow) -> None:
        self._indices, together = flow.indices, flow.indices.copy()
        written = [
            live[live != FROZEN]
            for (operand, place), side in flow.sides.items()
            if side is Side.WRITES and (axis := flow.constants[operand][place]) is not None
            for live in [np.unique(flow.indices.find(axis))]
        ]
        written = [live for live in written if len(live)]
        for live in written:
            together.unite(live, live[:1])
        everything = np.unique(np.concatenate(written)) if written else np.zeros(0, np.intp)
        families = together.find(everything)
        order = list(dict.fromkeys(int(together.find(live[:1])[0]) for live in written))
        self.classes = [everything[families == family] for family in order]
        self._family, self._channel = (np.full(len(flow.indices), -1) for _ in range(2))
        for number, classes in enumerate(self.classes):
            self._family[classes], self._channel[classes] = number, np.arange(len(classes))

    def along(self, axis: Ids | None) -> Iterator[tuple[int, Ids]]:
        """The groups whose channels run along an axis, each with its channels by index."""
        if axis is None:
            return
        classes = self._indices.find(axis)
        families = self._family[classes]
        for family in np.unique(families[families >= 0]):
            yield int(family), np.where(families == family, self._channel[classes], -1)


def _groups(flow: Flow) -> Iterator[ChannelGroup]:
    families = _Families(flow)
    parts: list[list[Part]] = [[] for _ in families.classes]
    activations: list[list[Activation]] = [[] for _ in families.classes]
    for (node, index), operand in flow.constants.items():
        for place, axis in enumerate(operand):
            side = flow.sides.get(((node, index), place), Side.BESIDE)
            for family, channels in families.along(axis):
                parts[family].append(Part(str(node.name), index, place, channels, side))
    for value, axes in flow.values.items():
        for place, axis in enumerate(axes or ()):
            for family, channels in families.along(axis):
                activations[family].append(Activation(name_of(value), place, channels))
    kinds: list[Kind] = [Kind.NEURONS] * len(parts)
    for kind, seen in ((Kind.FILTERS, flow.filters), (Kind.WIDTH, flow.width), (Kind.HEADS, flow.heads)):
        for family in {family for axis in seen for family, _ in families.along(axis)}:
            kinds[family] = kind
    for classes, kind, own, values in zip(families.classes, kinds, parts, activations, strict=True):
        if len(classes) > 1 and any(part.side is Side.READS for part in own):  # else nothing tells what one is worth
            yield ChannelGroup(kind, len(classes), tuple(own), tuple(values))
