"""Order channels so that the pattern of zeros that follows keeps more of the weights.

    V act(W x + b) = V[:, p] act(W[p] x + b[p])      p: the order that keeps most of V's energy in the pattern

Channels lie together in the groups of a pattern N:M by the chance of their numbers; where a group is closed, they may
be numbered anew: filters, hidden neurons, the width of a model whose outputs do not show it. What writes them, what
meets them and what reads them is ordered alike (channels/permute.py), so that the float function stays. All weights
that read the channels count, each by the share of its energy w^2 that is kept (sparsity/channel_order.py); the head
does not, which stays dense, and where one of them has the pattern already the order stays. The pass stands in front of
the one that makes the zeros. No packaged recipe has it: on MiniLM, whose outputs show the width, the weights behind
the hidden neurons kept 2 % more of w^2, and the answers with Wanda and refitting were as far from the dense ones as
without.
Source: Pool and Yu, "Channel Permutations for N:M Sparsity", 2021.

Errors: RecipeError for what is no pattern.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from pydantic import Field, field_validator

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.reporting.wording import count
from qcompile.compiler.roles import Role, roles
from qcompile.compiler.weight_pattern import Pattern
from qcompile.passes.transform.channels.group import ChannelGroup
from qcompile.passes.transform.channels.indices import Ids
from qcompile.passes.transform.channels.permute import exchangeable, permute
from qcompile.passes.transform.channels.search import channel_groups
from qcompile.passes.transform.sparsity.channel_order import best_order, kept_energy
from qcompile.runtime.ahead import ahead, cores

Floats = npt.NDArray[np.float32]


class PermuteChannels(Pass):
    """Number channels anew so that a pattern of zeros costs less."""

    name: ClassVar[str] = "permute-channels"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})
    float_equivalent: ClassVar[bool] = True

    pattern: str = Field(default="2:4", description="the pattern N:M that follows")

    @field_validator("pattern")
    @classmethod
    def _is_pattern(cls, text: str) -> str:
        Pattern.parse(text)
        return text

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        pattern, known = Pattern.parse(self.pattern), roles(model)
        heads = {name for name, role in known.items() if role is Role.HEAD}
        groups = [group for group in channel_groups(model, width=True) if group.size % pattern.group == 0]
        found = list(ahead(lambda group: _ordered(group, model, heads, pattern), groups, cores()))
        orders = {group: order for group, (order, _, _) in zip(groups, found, strict=True) if len(order)}
        before, after = sum(kept for _, kept, _ in found), sum(kept for _, _, kept in found)
        permute(model, orders, self.name)
        if orders:
            context.notice(
                f"{self.name}: the channels of {count(len(orders), 'group')} are numbered anew, so that {pattern} "
                f"keeps {after / before - 1:.1%} more of what the weights that read them hold (sum of w^2)"
            )
        return bool(orders)


def _ordered(group: ChannelGroup, model: ir.Model, heads: set[str], pattern: Pattern) -> tuple[Ids, float, float]:
    """The order for a group, none where it stays, and what the pattern keeps before and after."""
    energy = _energy(group, model, heads, pattern)
    if energy is None:
        return np.zeros(0, np.intp), 0.0, 0.0
    order, before = best_order(energy, exchangeable(group), pattern), kept_energy(energy, pattern)
    if (order == np.arange(group.size)).all():
        return order[:0], before, before
    return order, before, kept_energy(energy[:, order], pattern)


def _energy(group: ChannelGroup, model: ir.Model, heads: set[str], pattern: Pattern) -> Floats | None:
    """w^2 of all weights that read the channels of `group`, each as a share of its own: [rows, channels]; None where
    one of them has the pattern, which another order would take."""
    nodes = {str(node.name): node for node in model.graph}
    found: list[Floats] = []
    for part in group.readers:
        weight = constant(nodes[part.node].inputs[part.index])
        if part.node in heads or weight is None or not np.array_equal(part.channels, np.arange(group.size)):
            continue
        rows = np.moveaxis(weight, part.axis, -1).reshape(-1, group.size).astype(np.float32)
        if pattern.holds(rows):
            return None
        if (whole := float(np.square(rows, dtype=np.float64).sum())) > 0:
            found.append((np.square(rows) / whole).astype(np.float32))
    return np.concatenate(found) if found else None
