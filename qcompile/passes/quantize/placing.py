"""What a pass that places operations by their time tells of its choice: the forms that it would give each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from qcompile.compiler.context import CompileContext
from qcompile.compiler.plan import QuantPlan
from qcompile.compiler.units import Candidate


@runtime_checkable
class Placing(Protocol):
    """A pass that chooses between forms by time."""

    def trials(self, found: Sequence[Candidate], context: CompileContext) -> Iterator[tuple[Candidate, QuantPlan]]:
        """Plans with one of the operations each, in every form that is open to it, on grids of any range."""
        ...
