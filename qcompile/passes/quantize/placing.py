"""What a pass that places operations by their time tells of its choice: the forms that it would give each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.plan import QuantPlan
from qcompile.compiler.units import Candidate


@runtime_checkable
class Placing(Protocol):
    """A pass that chooses between forms by time."""

    def trials(self, model: ir.Model, context: CompileContext) -> Iterator[tuple[Candidate, QuantPlan]]:
        """Plans with one operation of the main graph each, in every form that is open to it, on grids of any range."""
        ...
