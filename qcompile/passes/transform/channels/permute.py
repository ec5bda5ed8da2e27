"""Put the channels of a group into another order: in every tensor that they run through, so that nothing changes.

    W' = W[:, order],  b' = b[order],  V' = V[order, :]      V' act(W' x + b') = V act(W x + b)

Channels may change places with those that run through the same axes as often: what meets one of them, meets the other.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import constant, name_of
from qcompile.compiler.provenance import stamp_channels
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.prepare.untie import set_constant
from qcompile.passes.transform.channels.group import ChannelGroup, Part
from qcompile.passes.transform.channels.indices import Ids


def exchangeable(group: ChannelGroup) -> Ids:
    """A number for each channel of `group`: channels of one number may change places."""
    axes = [part.channels for part in group.parts] + [value.channels for value in group.activations]
    counts = [np.bincount(axis[axis >= 0], minlength=group.size) for axis in axes]
    _, kinds = np.unique(np.stack(counts, axis=1), axis=0, return_inverse=True)
    return kinds.reshape(-1)


def permute(model: ir.Model, orders: Mapping[ChannelGroup, Ids], made_by: str) -> None:
    """Let channel `order[i]` of each group stand where channel i stood. Names and shapes stay; every node that reads a
    constant anew is stamped `made_by`."""
    nodes, names = {str(n.name): n for n in model.graph}, Names(model)
    for group, order in orders.items():
        done: set[tuple[ir.Value, int]] = set()
        for part in group.parts:
            node = nodes[part.node]
            value = node.inputs[part.index]
            assert value is not None
            if (value, part.axis) in done:
                continue
            array = constant(value)
            assert array is not None
            array = np.take(array, _places(part.channels, order), part.axis)
            if value.const_value is not None and _alike(value, part, group, nodes):
                value.const_value = ir.tensor(array, name=name_of(value))
                done.add((value, part.axis))
            else:
                set_constant(node, part.index, array, names)
            stamp_channels(node, made_by, [node])


def _places(channels: Ids, order: Ids) -> Ids:
    """For each index of an axis, the one that comes in its place: of several of one channel, each by its turn."""
    found = np.arange(len(channels))
    by_channel = [np.flatnonzero(channels == channel) for channel in range(len(order))]
    for channel, source in enumerate(order):
        found[by_channel[channel]] = by_channel[source]
    return found


def _alike(value: ir.Value, part: Part, group: ChannelGroup, nodes: Mapping[str, ir.Node]) -> bool:
    """Whether all who read `value` have the same channels along this axis."""
    same = {
        (nodes[other.node], other.index)
        for other in group.parts
        if other.axis == part.axis and np.array_equal(other.channels, part.channels)
    }
    return all((use.node, use.idx) in same for use in value.uses()) and not value.is_graph_output()
