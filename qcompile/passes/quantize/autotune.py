"""Measure operations in float and in the forms that placement may give them, on the device that shall run them.

    time(operation, form)  best run of the operation alone, lowered as the artifact will have it, between its borders
    time(conversion)       the same for QuantizeLinear and DequantizeLinear of every tensor that may become codes
    layout                 ns for each element of an image, which its conversion costs where float and int8
                           convolutions keep channels in different places

Placement then weighs these times in place of the target's table, also on targets that usually quantize whatever they
can. What was learned is kept by kind of operation and shape, and is not measured again; with the same times the same
bytes come out. In the end the model placed by times and the model placed by the table run in turns, and the table
stays unless times win. Shapes are those of the first sample. Source: measured cost tables as in HAQ (Wang et al.,
2019) and TVM's tuning records.

Errors: TargetError where the device is not there; DataError for a file that holds no times; OutputError.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir

from qcompile.compiler.artifact import writing
from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.costs import table_times
from qcompile.compiler.graph import name_of
from qcompile.compiler.params import QuantParams
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.placement import Conversion, Measured
from qcompile.compiler.plan import Form, QuantPlan, Unit
from qcompile.compiler.scratch import scratch_folder
from qcompile.compiler.simulation import placement, quantized_copy
from qcompile.compiler.tensor_shapes import Shape, shapes_of
from qcompile.compiler.timings import Bench, Timings, kind_of, read_timings
from qcompile.compiler.units import Candidate
from qcompile.errors import DataError, OutputError, RecipeError, TargetError
from qcompile.passes.quantize.placing import Placing
from qcompile.passes.quantize.stopwatch import Stopwatch
from qcompile.runtime.benchmark import Timing, interleaved, ratio
from qcompile.runtime.kernel_times import RunTime

_SECONDS = 2.0
"""Of both models together."""

_NEVER = RunTime(math.inf)
"""Of what does not run."""


class Autotune(Pass):
    """Measure what placement weighs, on the device."""

    name: ClassVar[str] = "autotune"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES})
    measures: ClassVar[bool] = True

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        _Tuning(model, context).run()
        return False


@dataclass(frozen=True, eq=False)
class _Choice:
    """An operation and the forms that are open to it.

    Attributes:
        trials: plans of this operation alone; that of float is empty.
    """

    candidate: Candidate
    trials: list[QuantPlan]

    @property
    def name(self) -> str:
        return str(self.candidate.node.name)

    def tensors(self) -> Iterator[tuple[str, QuantParams]]:
        """What it may read or write as codes."""
        names = [name_of(v) for v in (*self.candidate.reads(), self.candidate.output)]
        grids = {name: params for plan in self.trials for name, params in plan.tensors.items()}
        yield from ((name, grids[name]) for name in names if name in grids)


_Runs = list[tuple[Unit | None, RunTime]]
"""Times of one operation by its unit, None for float."""

_Times = dict[str, _Runs]
"""The same by the name of its node."""


class _Tuning:
    """One run of the pass."""

    def __init__(self, model: ir.Model, context: CompileContext) -> None:
        self.model, self.context = model, context
        self.sample = _first_sample(context)
        self.timings, self.path, self.extends = _timings(context)
        self.watch = Stopwatch(model, context, self.timings, self.extends)

    def run(self) -> None:
        choices, context = self.choices(), self.context
        values = [v for c in choices for n in c.candidate.nodes for v in (*n.inputs, *n.outputs) if v is not None]
        shapes = shapes_of([v for v in values if v.name], self.model, self.sample, context.target.providers)
        context.progress.start("measuring operations", len(choices))
        times: _Times = {}
        for choice in choices:
            times[choice.name] = self.times(choice, shapes)
            context.progress.advance()
        layout = _layout(choices, times, shapes)
        conversions = {
            name: found
            for choice in choices
            for name, params in choice.tensors()
            if name in shapes and (found := self.conversion(params, shapes[name], layout)) is not None
        }
        context.progress.finish()
        kernels = {name: by_form for name, runs in times.items() if (by_form := _by_form(runs))}
        lowerings = {(name, unit.lowering): run.kernels for name, runs in times.items() for unit, run in runs if unit}
        pace = _pace(choices, kernels, shapes)
        context.measured = Measured(str(self.timings.bench), kernels, conversions, lowerings, pace)
        self.keep()
        self.tell(len(choices), len(kernels))
        self.compare()

    def choices(self) -> list[_Choice]:
        """The operations of the main graph that a placing pass of the recipe may give another form."""
        placing = [p for p in self.context.following if isinstance(p, Placing)]
        if not placing:
            raise RecipeError(
                "no pass behind autotune chooses forms by their time",
                hint="put it in front of place-int8, place-dynamic or place-weights",
            )
        found: dict[ir.Node, _Choice] = {}
        for candidate, plan in (trial for p in placing for trial in p.trials(self.model, self.context)):
            found.setdefault(candidate.node, _Choice(candidate, [QuantPlan()])).trials.append(plan)
        return list(found.values())

    def times(self, choice: _Choice, shapes: dict[str, Shape]) -> _Runs:
        """Of every trial; none where float does not run, or a shape is not known."""
        kind = kind_of(choice.candidate, shapes)
        if kind is None:
            return []
        runs = [
            (next(iter(plan.units.values()), None), self.watch.operation(choice.candidate, kind, plan, shapes))
            for plan in choice.trials
        ]
        return [(unit, run or _NEVER) for unit, run in runs] if runs[0][1] else []

    def conversion(self, params: QuantParams, shape: Shape, layout: float) -> Conversion | None:
        there, back = (self.watch.conversion(f"{op}Linear", params, shape) for op in ("Quantize", "Dequantize"))
        if there is None or back is None:
            return None
        extra = layout * math.prod(shape) if len(shape) == 4 else 0.0
        return Conversion(there.kernels + extra, back.kernels + extra)

    def keep(self) -> None:
        """Write down what was learned; a cache that cannot be written costs a notice, not the compilation."""
        if not self.watch.taken:
            return
        try:
            if self.context.tuning is None:
                with writing(self.path):
                    self.path.parent.mkdir(parents=True, exist_ok=True)
            self.timings.save(self.path)
        except OutputError as error:
            if self.context.tuning is not None:
                raise
            self.context.notice(f"autotune: the times are not kept, {error.where} {error.what}")

    def tell(self, asked: int, known: int) -> None:
        taken = f"{self.watch.taken} times were taken now" if self.watch.taken else "no time had to be taken"
        told = f"autotune: {known} of {asked} operations are weighed by times on {self.timings.bench}; {taken}"
        if known < asked:
            told += "; the others stay with the target's table"
            told += ", shapes are known from a sample alone: give --calib" if self.sample is None else ""
        self.context.notice(told)

    def compare(self) -> None:
        """Where both placements differ, let the models run in turns; times have to win to be kept."""
        context, by_table = self.context, replace(self.context, measured=None)
        forms = [
            {name: (unit.form, unit.lowering) for name, unit in placement(self.model, apart).units.items()}
            for apart in (context, by_table)
        ]
        moved = {name for name in forms[0].keys() | forms[1].keys() if forms[0].get(name) != forms[1].get(name)}
        if not moved or self.sample is None or not self.extends:
            context.notice(f"autotune: {len(moved)} operations are placed otherwise than by the table")
            return
        by_times, others = self.in_turns(by_table)
        faster, _ = ratio(others, by_times)
        stays = faster <= 1
        context.notice(
            f"autotune: {len(moved)} operations are placed otherwise than by the table, which makes the model "
            f"{faster:.2f} times as fast" + (": the table's placement stays" if stays else "")
        )
        if stays:
            context.measured = None

    def in_turns(self, by_table: CompileContext) -> tuple[Timing, Timing]:
        """The model placed by times and the one placed by the table."""
        with tempfile.TemporaryDirectory(prefix="qcompile-", dir=scratch_folder()) as folder:
            paths = {}
            for name, apart in (("times", self.context), ("table", by_table)):
                paths[name] = Path(folder) / f"{name}.onnx"
                ir.save(quantized_copy(self.model, apart), paths[name], external_data=f"{name}.data")
            assert self.sample is not None
            timings = interleaved(paths, self.sample, self.context.target.providers[0], _SECONDS)
        return timings["times"], timings["table"]


def _first_sample(context: CompileContext) -> Sample | None:
    samples = context.calibration if context.calibration is not None else ()
    return next(iter(samples), next(iter(context.held_out), None))


def _timings(context: CompileContext) -> tuple[Timings, Path, bool]:
    """The times to start from, where they are kept, and whether more can be taken on this machine."""
    path, provider = context.tuning, context.target.providers[0]
    known = read_timings(path) if path is not None and path.exists() else None
    if known is not None and known.bench.provider != provider:
        raise DataError(
            f"these times are of {known.bench.provider}; target '{context.target.name}' runs on {provider}",
            where=str(path),
        )
    try:
        bench = Bench.here(provider)
    except TargetError:
        if known is None:
            raise
        return known, Path(str(path)), False
    if known is not None:
        return known, Path(str(path)), known.bench == bench
    cached = path or bench.file()
    with contextlib.suppress(DataError):
        return read_timings(cached), cached, True
    return Timings(bench=bench), cached, True


def _by_form(runs: _Runs) -> dict[Form, float]:
    """The shortest time of each form."""
    found: dict[Form, float] = {}
    for unit, run in runs:
        form = unit.form if unit else Form.FLOAT
        found[form] = min(run.kernels, found.get(form, math.inf))
    return found


def _layout(choices: Iterable[_Choice], times: _Times, shapes: Mapping[str, Shape]) -> float:
    """ns for each element of an image that changes its layout on both sides of a conversion."""
    spent, elements = 0.0, 0
    for choice in choices:
        runs = [run for _, run in times[choice.name]]
        if any(run.layout for run in runs):
            spent += sum(run.layout for run in runs)
            borders = (*choice.candidate.reads(), choice.candidate.output)
            elements += sum(math.prod(shapes[name_of(v)]) for v in borders)
    return spent / elements if elements else 0.0


def _pace(
    choices: Iterable[_Choice], kernels: Mapping[str, Mapping[Form, float]], shapes: Mapping[str, Shape]
) -> float:
    """The middle ratio of a measured time to that of the target's table."""
    found = []
    for choice in choices:
        known = kernels.get(choice.name, {})
        by_table = table_times(choice.candidate, lambda v: float(math.prod(shapes[name_of(v)]))) if known else {}
        found += [t / by_table[form] for form, t in known.items() if by_table.get(form) and t < math.inf]
    return statistics.median(found) if found else 1.0
