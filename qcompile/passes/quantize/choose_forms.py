"""Give the operations that cost the answers most a truer form, until the outputs are true enough.

    gain_g = E_block(plan) - E_block(plan with group g in its truer form)     compiler/relative_error.py
    order the groups by gain_g / (time that the truer form takes longer), then find by bisection the
    shortest prefix of that order whose SQNR at the outputs of the whole model reaches the goal, and
    leave out what is not needed beside its last group (fewest.py).

The truer form of a linear layer quantizes its input row by row as it runs: in blocks where the target has
those (BLOCKS), else with one scale for each output (DYNAMIC, by an operator of ours). Of anything else it is
float. Linear layers that read one tensor are one group: they are smoothed, clipped and quantized together.
Linear layers that placement left float become so first where the table says that it is faster. That errors of
blocks add up is an assumption, so the goal is held against the whole model. Source: layer-wise sensitivity
as in HAWQ (Dong et al., 2019) and the "mixed precision" of NVIDIA's and Intel's tools, here with measured
blocks and times.

Errors: DataError without calibration samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.activation_store import ActivationStore
from qcompile.compiler.block_walker import MEMORY, BlockWalker, Visit
from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.costs import conversion_time, operation_times
from qcompile.compiler.graph import name_of, nodes
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import Form, QuantizedWeight, QuantPlan, Unit, WeightStore
from qcompile.compiler.relative_error import relative_error
from qcompile.compiler.serialization import runnable
from qcompile.compiler.simulation import lowered_copy
from qcompile.compiler.targets.table import Lowering, Row
from qcompile.compiler.units import Candidate, candidates, unit_reading_float
from qcompile.compiler.verification.noise import Noise
from qcompile.errors import DataError
from qcompile.passes.quantize.fewest import fewest
from qcompile.passes.quantize.round_to_nearest import quantized_weight
from qcompile.runtime.calibration import run_samples
from qcompile.runtime.providers import session_entries

Array = np.ndarray[Any, Any]

_NEARLY = 0.1
"""Where the goal is out of reach, this part of the error that could be taken away may stay."""

_WORTH_WHILE = 3.0
"""dB, half the noise; where the goal is out of reach and all switches together bring less, none is made."""


class ChooseForms(Pass):
    """Trade speed for accuracy where the least speed buys the most."""

    name: ClassVar[str] = "choose-forms"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    measures: ClassVar[bool] = True

    output_sqnr: float = Field(default=24.0, description="SQNR in dB that every output shall reach")
    samples: int = Field(default=8, ge=1, description="calibration samples to measure on")
    block_size: Literal[16, 32, 64, 128, 256] = Field(default=32, description="weights that share a scale in a block")

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        if context.calibration is None or len(context.calibration) == 0:
            raise DataError("choose-forms needs calibration samples", hint="give representative inputs with --calib")
        samples = list(itertools.islice(context.calibration, self.samples))
        _Choice(self, model, context, samples).run()
        return False


@dataclass(frozen=True, eq=False)
class _Switch:
    """A group of units, and the form in which they are truer.

    Attributes:
        names: nodes of the units.
        units: the units in their truer form; empty for float.
        slower: time in ns that the truer form takes longer.
        gain: block error that it takes away.
    """

    names: tuple[str, ...]
    units: tuple[Unit, ...]
    weights: Mapping[tuple[str, str], QuantizedWeight] = field(repr=False)
    slower: float
    gain: float = 0.0


_Switches = tuple[_Switch, ...]


class _Choice:
    """One run of the pass."""

    def __init__(self, options: ChooseForms, model: ir.Model, context: CompileContext, samples: list[Sample]) -> None:
        self.options, self.model, self.context, self.samples = options, model, context, samples
        self.candidates = {str(c.node.name): c for c in candidates(model.graph, context.target)}

    def run(self) -> None:
        plan = self.context.plan
        rescued = self.rescue()
        order = self.ranking()
        kept, before, after = self.needed(order)
        chosen = _with(plan, kept)
        plan.units, plan.weights = chosen.units, chosen.weights
        for switch in kept:
            if not switch.units:
                plan.kept_float |= dict.fromkeys(
                    switch.names, "its codes cost the outputs more than their speed is worth (choose-forms)"
                )
        self.tell(rescued, kept, before, after)

    def rescue(self) -> int:
        """Linear layers that stayed float become BLOCKS where that is faster; their number."""
        plan, found = self.context.plan, 0
        for name, candidate in self.candidates.items():
            times = self.times(candidate)
            by_row = _by_row(candidate.row)
            open_to_it = name in plan.kept_float.keys() - plan.pinned and not candidate.obstacle
            if not open_to_it or by_row is Form.FLOAT or times[by_row] > times[Form.FLOAT]:
                continue
            switch = self.switch([name], by_row)
            plan.units |= {u.node: u for u in switch.units}
            plan.weights |= switch.weights
            del plan.kept_float[name]
            found += 1
        position = {node.name: i for i, node in enumerate(nodes(self.model))}
        plan.units = dict(sorted(plan.units.items(), key=lambda item: position[item[0]]))
        return found

    def ranking(self) -> list[_Switch]:
        """Every group that gains by its truer form, best bargain first."""
        found: list[_Switch] = []
        walker = BlockWalker(self.model, self.context, self.samples, method=self.options)
        for visit in walker:
            read_later = {name for block in walker.blocks[visit.index + 1 :] for name in block.inputs}
            outputs = set(visit.block.outputs)
            judged = [v for v in visit.model.graph.outputs if name_of(v) in (outputs & read_later or outputs)]
            names = [name_of(v) for v in judged if v.dtype is None or v.dtype.is_floating_point()]
            switches = self.switches(visit)
            if names and switches:
                gains = visit.once(partial(self.gains, visit, names, switches))["gains"]
                found += [replace(s, gain=float(g)) for s, g in zip(switches, gains, strict=True)]
        return sorted((s for s in found if s.gain > 0), key=lambda s: s.gain / max(s.slower, 1.0), reverse=True)

    def gains(self, visit: Visit, names: Sequence[str], switches: Sequence[_Switch]) -> dict[str, Array]:
        plan = self.context.plan
        start, *others = (self.block_error(visit, names, p) for p in (plan, *(_with(plan, [s]) for s in switches)))
        return {"gains": start - np.array(others)}

    def block_error(self, visit: Visit, names: Sequence[str], plan: QuantPlan) -> float:
        given = visit.run(lowered_copy(visit.model, self.context, plan), visit.float_inputs)
        return relative_error(visit.float_outputs, given, names)

    def switches(self, visit: Visit) -> list[_Switch]:
        """The groups of one block: linear layers that read one tensor, other units one by one, and the units around
        one tensor, which only becomes float when its writer and its readers do."""
        groups: dict[tuple[str, Form], list[str]] = {}
        for name in visit.block.nodes:
            unit, candidate = self.context.plan.units.get(name), self.candidates.get(name)
            if unit is None or candidate is None or unit.form not in (Form.INPUTS, Form.FULL):
                continue
            reads = [r for r in unit.inputs if r is not None]
            by_row = _by_row(candidate.row)
            if by_row is not Form.FLOAT:
                groups.setdefault((reads[0], by_row), []).append(name)
                continue
            groups[name, Form.FLOAT] = [name]
            for tensor in (*reads, *([unit.output] if unit.form is Form.FULL else [])):
                groups.setdefault((f"around {tensor}", Form.FLOAT), []).append(name)
        return [
            self.switch(names, form) for names, form in dict.fromkeys((tuple(n), f) for (_, f), n in groups.items())
        ]

    def switch(self, names: Sequence[str], form: Form) -> _Switch:
        target, plan = self.context.target, self.context.plan
        units, weights, slower = [], {}, 0.0
        for name in names:
            candidate = self.candidates[name]
            times = self.times(candidate)
            now = plan.units[name].form if name in plan.units else Form.FLOAT
            slower += times[form] - times[now]
            if form is Form.FLOAT:
                slower += self.conversions(candidate)
                continue
            unit = unit_reading_float(candidate, form, target, self.options.block_size)
            units.append(unit)
            weights[str(unit.weight), name] = quantized_weight(candidate.node, unit, candidate.row, plan)
        return _Switch(tuple(names), tuple(units), weights, slower)

    def times(self, candidate: Candidate) -> dict[Form, float]:
        """ns of each form of an operation, on samples as they were seen."""
        return operation_times(candidate, self.elements, self.context)

    def conversions(self, candidate: Candidate) -> float:
        back = sum(conversion_time(v, self.elements, self.context).dequantize for v in candidate.reads())
        return back + conversion_time(candidate.output, self.elements, self.context).quantize

    def elements(self, value: ir.Value) -> float:
        seen = self.context.statistics.range_of(name_of(value))
        return seen.elements if seen else 0.0

    def needed(self, order: Sequence[_Switch]) -> tuple[_Switches, float, float]:
        """The switches to make, and the least SQNR in dB of an output before and after."""
        with ActivationStore(MEMORY) as exact:
            names = _answers(self.model)
            for i, outputs in enumerate(self.outputs(self.model)):
                for name in names:
                    exact.put(name, i, outputs[name])

            @cache
            def sqnr(made: _Switches) -> float:
                plan = _with(self.context.plan, made)
                return _worst_sqnr(exact, self.outputs(lowered_copy(self.model, self.context, plan)), names)

            before, best = sqnr(()), sqnr(tuple(order))
            goal = self.options.output_sqnr
            if best < goal:
                goal = _nearly(before, best) if best > before + _WORTH_WHILE else before
            kept = fewest(tuple(order), sqnr, goal)
            return kept, before, sqnr(kept)

    def outputs(self, model: ir.Model) -> Iterator[dict[str, Array]]:
        """The outputs of a state of the model for each sample."""
        names, target = [name_of(v) for v in model.graph.outputs], self.context.target
        with runnable(model) as data:
            for outputs in run_samples(data, self.samples, target.providers, session_entries(target.providers[0])):
                yield dict(zip(names, outputs, strict=True))

    def tell(self, rescued: int, kept: Sequence[_Switch], before: float, after: float) -> None:
        blocks = rescued + sum(len(s.units) for s in kept)
        floats = sum(len(s.names) for s in kept if not s.units)
        blocked = any(Form.BLOCKS in c.row.forms for c in self.candidates.values())
        moved = f"{blocks} linear layers {'in blocks' if blocked else 'row by row'}, {floats} operations float"
        said = f"{moved}: least SQNR of an output {before:.1f} dB -> {after:.1f} dB"
        goal = self.options.output_sqnr
        short = f"; the goal of {goal:g} dB is out of reach" if after < goal else ""
        self.context.notice(f"choose-forms: {said} on {len(self.samples)} calibration samples{short}")


def _by_row(row: Row) -> Form:
    """The form of a row that quantizes its input row by row, FLOAT where there is none."""
    if Form.BLOCKS in row.forms:
        return Form.BLOCKS
    return Form.DYNAMIC if row.how(Form.DYNAMIC) is Lowering.OPERATOR else Form.FLOAT


def _with(plan: QuantPlan, switches: Sequence[_Switch]) -> QuantPlan:
    """A plan with the switches made."""
    gone = {name for switch in switches for name in switch.names}
    new = {unit.node: unit for switch in switches for unit in switch.units}
    units = {name: new.get(name, unit) for name, unit in plan.units.items() if name not in gone or name in new}
    weights = plan.weights | {key: w for switch in switches for key, w in switch.weights.items()}
    used = WeightStore({key: w for key, w in weights.items() if key[1] in units})
    return QuantPlan(units, plan.tensors, used, plan.kept_float)


def _answers(model: ir.Model) -> list[str]:
    """The floating-point outputs that are answers: not those that only append to an input, as a cache does."""
    outputs = [v for v in model.graph.outputs if v.dtype is None or v.dtype.is_floating_point()]
    answers = [v for v in outputs if not _appends(v)]
    return [name_of(v) for v in answers or outputs]


def _appends(value: ir.Value) -> bool:
    node = value.producer()
    return (
        node is not None and node.op_type == "Concat" and any(v is not None and v.is_graph_input() for v in node.inputs)
    )


def _nearly(none: float, whole: float) -> float:
    """The SQNR at which all but a part of the error between those of no and of all switches is gone."""
    start, end = (10 ** (-s / 10) for s in (none, whole))
    return -10 * math.log10(end + (start - end) * _NEARLY)


def _worst_sqnr(exact: ActivationStore, given: Iterable[Mapping[str, Array]], names: Sequence[str]) -> float:
    noise = {name: Noise() for name in names}
    for i, outputs in enumerate(given):
        for name in names:
            noise[name].add(exact.get(name, i), outputs[name])
    return min((n.sqnr for n in noise.values()), default=math.inf)
