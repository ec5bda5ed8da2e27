"""Times of operations and conversions, one at a time: looked up among those that were taken before, else taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import onnx_ir as ir

from qcompile.compiler.context import CompileContext, SilentProgress
from qcompile.compiler.graph import opset
from qcompile.compiler.lone_operations import alone, conversion, copies, without_borders
from qcompile.compiler.params import QuantParams
from qcompile.compiler.passes import Phase
from qcompile.compiler.plan import QuantPlan
from qcompile.compiler.simulation import lowered_copy
from qcompile.compiler.targets.table import Cost
from qcompile.compiler.tensor_shapes import Shape
from qcompile.compiler.timings import Timings
from qcompile.compiler.units import Candidate
from qcompile.errors import ModelError, TargetError
from qcompile.passes.lower.precision import Precision
from qcompile.passes.quantize.round_to_nearest import RoundToNearest
from qcompile.runtime.kernel_times import RunTime, run_time


class Stopwatch:
    """Takes times for one compilation.

    Args:
        timings: what is known; what is taken is added.
        extends: whether this machine is the one of `timings`; if not, what is unknown stays so.

    Attributes:
        taken: how many times were taken.
    """

    def __init__(self, model: ir.Model, context: CompileContext, timings: Timings, extends: bool) -> None:
        self.model, self.context, self.timings, self.extends = model, context, timings, extends
        self.taken = 0
        halves = (p.type_on(context.target) for p in context.following if isinstance(p, Precision))
        self.floats = next((dtype for dtype in halves if dtype is not None), ir.DataType.FLOAT)

    def operation(
        self, candidate: Candidate, kind: str, plan: QuantPlan, shapes: Mapping[str, Shape]
    ) -> RunTime | None:
        """Time of an operation as `plan` has it; None where it does not run."""
        moves = self.context.target.relayout != Cost() and candidate.node.op_type != "Transpose"
        image = len(shapes[str(candidate.output.name)]) == 4
        return self._known(kind, self._form(plan), lambda: self._lowered(candidate, plan, shapes), moves and image)

    def conversion(self, op_type: str, params: QuantParams, shape: Shape) -> RunTime | None:
        """Time of a QuantizeLinear or DequantizeLinear; None where it does not run."""
        kind, form = f"{op_type} {'x'.join(map(str, shape))}", f"{params.spec} of {self.floats.name.lower()}"
        version = opset(self.model)
        return self._known(kind, form, lambda: conversion(op_type, params, shape, self.floats, version), False)

    def _known(self, kind: str, form: str, make: Callable[[], ir.Model], layouts: bool) -> RunTime | None:
        known = self.timings.kinds.get(kind, {})
        if form not in known and self.extends:
            known = self.timings.kinds.setdefault(kind, {})
            known[form] = self._timed(make(), layouts)
            self.taken += 1
        return known.get(form)

    def _timed(self, piece: ir.Model, layouts: bool) -> RunTime | None:
        target = self.context.target
        provider = target.providers[0]
        if closed := target.closed_ways(piece).get(provider):
            raise TargetError(
                f"autotuning runs on {provider}, which cannot take these codes: {closed}", hint="leave --autotune out"
            )
        options = target.provider_options(piece).get(provider, {})
        try:
            model, count = copies(piece)
            run = run_time(model, provider, layouts, options)
        except ModelError:
            return None
        return RunTime(round(run.kernels / count, 1), round(run.layout / count, 1))

    def _form(self, plan: QuantPlan) -> str:
        floats = self.floats.name.lower()
        for unit in plan.units.values():
            grids = dict.fromkeys(str(plan.tensors[name].spec) for name in unit.inputs if name is not None)
            specs = [*grids, *([str(unit.weight_spec)] if unit.weight_spec else [])]
            by = f" as {unit.lowering.name.lower()}" if unit.lowering else ""
            return f"{unit.form.name.lower()}{by}: {' by '.join(specs)} beside {floats}"
        return floats

    def _lowered(self, candidate: Candidate, plan: QuantPlan, shapes: Mapping[str, Shape]) -> ir.Model:
        piece = alone(self.model, candidate, shapes)
        own = QuantPlan(dict(plan.units), dict(plan.tensors))
        apart = replace(
            self.context, plan=own, codes=None, notices=[], held_out=[], calibration=None, progress=SilentProgress()
        )
        RoundToNearest().run(piece, apart)
        lowered = lowered_copy(piece, apart)
        for later in self.context.following:
            if later.phase is Phase.LOWER and later.measures and not later.changes_interface:
                later.run(lowered, apart)
        without_borders(lowered)
        return lowered
