"""A group: channels of which any can be removed without the others, each with all that belongs to it.

Nodes and values are named, so that a group found in a model can be removed from a clone of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from qcompile.passes.transform.channels.indices import Ids


class Kind(StrEnum):
    """What the channels of a group are."""

    FILTERS = "filters"
    NEURONS = "neurons"
    HEADS = "heads"
    WIDTH = "width"


class Side(StrEnum):
    """What a constant does with the channels along one of its axes."""

    WRITES = "writes"
    """They are computed by it: columns of a matrix, filters of a convolution, columns of a table."""

    READS = "reads"
    """They are summed over."""

    BESIDE = "beside"
    """It meets them one by one: a bias, the scale of a norm."""


@dataclass(frozen=True, eq=False)
class Part:
    """One axis of a constant operand through which channels run.

    Attributes:
        node, index: the operand: name of the node, position among its inputs.
        channels: which channel of the group each index of the axis belongs to; -1 for none of them.
    """

    node: str
    index: int
    axis: int
    channels: Ids
    side: Side


@dataclass(frozen=True, eq=False)
class Activation:
    """One axis of a computed value through which channels run; `channels` as in Part."""

    value: str
    axis: int
    channels: Ids


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels 0 ... size - 1.

    Attributes:
        parts: every constant that is sliced, in the order of the graph.
        activations: every computed value that gets narrower.
    """

    kind: Kind
    size: int
    parts: tuple[Part, ...]
    activations: tuple[Activation, ...]

    @property
    def name(self) -> str:
        """The first node that writes the channels."""
        return next(self.writers).node

    @property
    def together(self) -> set[frozenset[int]]:
        """Sets of channels of which one must stay, else a tensor would be empty."""
        axes = [part.channels for part in self.parts] + [value.channels for value in self.activations]
        return {frozenset(axis.tolist()) for axis in axes if (axis >= 0).all()}

    @property
    def writers(self) -> Iterator[Part]:
        return (p for p in self.parts if p.side is Side.WRITES)

    @property
    def readers(self) -> Iterator[Part]:
        return (p for p in self.parts if p.side is Side.READS)
