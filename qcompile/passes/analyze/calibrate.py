"""Calibration: walk the samples once and observe every tensor that a later pass asks about.

    v_t = merge_i observe(x_t,i)   over samples i, for all tensors t in the same run;   clip_t = method(v_t)

The statistics have constant size (compiler/statistics.py, compiler/histogram.py) and the graph itself computes
them (compiler/observation.py), so memory does not grow with the samples. A checkpoint is written while it runs,
and `--resume` goes on to the same numbers. The methods are in calibrators/, one file each.

Errors: DataError when there are no samples, when a tensor becomes NaN (it names the tensor and the sample), or
when a calibration table does not fit.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.calibration_table import CalibrationTable, Run, TableSamples
from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.histogram import HELD_OUT, HISTOGRAM
from qcompile.compiler.observation import Block, Observation, observe
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.printer import print_model
from qcompile.compiler.reductions import Mask
from qcompile.compiler.serialization import runnable
from qcompile.compiler.statistics import RANGE, Statistic, StatisticsTable, Vector
from qcompile.errors import DataError
from qcompile.passes.analyze.calibrators import calibrator
from qcompile.runtime.calibration import calibration_provider, read_samples
from qcompile.runtime.providers import CPU

CHECKPOINT_SECONDS = 10.0
"""A checkpoint is written when the last one is older than this."""

_HELD_OUT_EVERY = 4
"""Every fourth sample judges the choice of the method `auto`."""

Wanted = dict[str, list[Statistic]]


class Calibrate(Pass):
    """Observe activations on the calibration samples, and choose how much of their range the codes shall cover."""

    name: ClassVar[str] = "calibrate"
    phase: ClassVar[Phase] = Phase.ANALYZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})

    method: Literal["min-max", "moving-average", "percentile", "entropy", "mse", "auto"] = Field(
        default="min-max",
        description="how the clip of a tensor is chosen; `auto` takes for each tensor the method with the least "
        "error on held-out samples",
    )
    percentile: float = Field(
        default=99.999, gt=50, le=100, description="share of the values, in percent, that `percentile` keeps"
    )
    mask: str | None = Field(
        default=None, description="name of a model input that is 1 where a position counts, such as `attention_mask`"
    )

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        if context.calibration is None or len(context.calibration) == 0:
            raise DataError(
                "no calibration samples",
                hint="give representative inputs with --calib, or ask for made-up ones with --calib synthetic",
            )
        chosen = calibrator(self.method, self.percentile)
        wanted: Wanted = {}
        for request in context.requests:
            of_tensor = wanted.setdefault(request.value, list(chosen.statistics))
            if request.statistic not in of_tensor:
                of_tensor.append(request.statistic)
        if wanted:
            context.statistics = self.known(model, wanted, context) or self.observed(model, wanted, context)
            context.statistics.calibrator = chosen
            self.record_clips(model, context)
        return False

    def known(self, model: ir.Model, wanted: Wanted, context: CompileContext) -> StatisticsTable | None:
        """The statistics of `wanted` in a calibration table, None where there is no table.

        Raises:
            DataError: the table is of another model or lacks statistics.
        """
        if not isinstance(context.calibration, TableSamples):
            return None
        source = context.calibration
        run = source.table.runs.get(_identity(model, self.mask))
        if run is None:
            raise DataError(
                "the calibration table belongs to another model, or to a recipe that prepares it otherwise",
                where=str(source.path),
                hint=f"it was made for {source.table.model} with the recipe {source.table.recipe}; make one for this "
                "model and recipe with `qcompile calibrate`",
            )
        places = observe(model, _observable(wanted)).blocks
        for statistic in dict.fromkeys(s for of_tensor in wanted.values() for s in of_tensor):
            tensors = [t for b in places if b.statistic in (statistic, _observed_as(statistic)) for t in b.tensors]
            lacking = [t for t in tensors if t not in run.statistics.vectors.get(statistic.kind, {})]
            if lacking:
                raise DataError(
                    f"the calibration table has no {statistic.kind} of {len(lacking)} tensors, such as '{lacking[0]}'",
                    where=str(source.path),
                    hint="make it anew with `qcompile calibrate` and the recipe and options of this command",
                )
        return StatisticsTable(run.statistics.samples, run.statistics.vectors)

    def observed(self, model: ir.Model, wanted: Wanted, context: CompileContext) -> StatisticsTable:
        """The statistics of `wanted` over all samples, from a checkpoint on where there is one."""
        assert context.calibration is not None
        on_device = calibration_provider(context.target.providers) != CPU
        observation = observe(model, _observable(wanted), mask=_mask(model, self.mask), on_device=on_device)
        self.notices(observation, wanted, context)
        tally = _Tally(observation, judged=any(HELD_OUT in of_tensor for of_tensor in wanted.values()))
        checkpoint = _Checkpoint(context, _identity(model, self.mask))
        if (seen_before := checkpoint.finished(tally)) is not None:
            return seen_before
        checkpoint.restore(tally)
        total = len(context.calibration)
        context.progress.start("calibrating", total)
        context.progress.advance(tally.samples)
        if observation.blocks and tally.samples < total:
            samples = _counted(itertools.islice(iter(context.calibration), tally.samples, None), context)
            with runnable(observation.model) as path_or_bytes:
                for seen in read_samples(path_or_bytes, samples, context.target.providers, observation.read):
                    tally.add(seen)
                    checkpoint.save(tally)
        context.progress.finish()
        checkpoint.save(tally, finished=True)
        return tally.table()

    def notices(self, observation: Observation, wanted: Wanted, context: CompileContext) -> None:
        if observation.uncounted:
            names = ", ".join(f"'{n}'" for n in observation.uncounted[:3])
            context.notice(
                f"{len(observation.uncounted)} tensors in the body of a Loop have no histogram, and their clip is "
                f"the range: {names}{', ...' if len(observation.uncounted) > 3 else ''}"
            )
        if observation.unmasked:
            context.notice(
                f"{len(observation.unmasked)} of {len(wanted)} observed tensors do not have the axes of the mask "
                f"'{self.mask}' and are observed whole, for example '{observation.unmasked[0]}'"
            )

    def record_clips(self, model: ir.Model, context: CompileContext) -> None:
        """Say how often `auto` took which method, and keep the clips where a table is made."""
        table, spec = context.statistics, context.target.activation
        run = context.calibrated.runs.get(_identity(model, self.mask)) if context.calibrated else None
        if self.method != "auto" and run is None:
            return
        clips = {name: clip for name in table.vectors.get(RANGE.kind, {}) if (clip := table.clip_of(name, spec))}
        if run is not None:
            run.spec, run.clips = str(spec), clips
        if self.method == "auto":
            counts = Counter(clip.method for clip in clips.values()).most_common()
            context.notice("calibration auto: " + ", ".join(f"{n} {method}" for method, n in counts))


class _Tally:
    """What has been seen so far: the vectors of each block, and of the held-out samples where `judged`."""

    def __init__(self, observation: Observation, judged: bool) -> None:
        self.samples = 0
        self.blocks = observation.blocks
        self.vectors = [block.identity for block in self.blocks]
        self.held_out = [
            (i, Block(HELD_OUT, b.tensors, b.at, b.codes))
            for i, b in enumerate(self.blocks)
            if judged and b.statistic is HISTOGRAM
        ]
        self.judges = [block.identity for _, block in self.held_out]

    def add(self, seen: list[Vector]) -> None:
        """Merge the vectors that one sample gave."""
        self.refuse_nan(seen)
        self.vectors = [b.statistic.merge(v, s) for b, v, s in zip(self.blocks, self.vectors, seen, strict=True)]
        if self.samples % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1:
            self.judges = [b.statistic.merge(v, seen[i]) for (i, b), v in zip(self.held_out, self.judges, strict=True)]
        self.samples += 1

    def refuse_nan(self, seen: list[Vector]) -> None:
        """NaN anywhere makes a sum of magnitudes NaN. Infinity (a mask) is a bound: such a tensor stays float."""
        for block, vectors in zip(self.blocks, seen, strict=True):
            if not np.isnan(vectors).any() or "magnitude" not in {c.name for c in block.statistic.components}:
                continue
            for tensor, vector in zip(block.tensors, vectors, strict=True):
                if np.isnan(block.statistic.component("magnitude", vector)).any():
                    raise DataError(
                        f"tensor '{tensor}' holds NaN for calibration sample {self.samples + 1}",
                        where=tensor,
                        hint="run the float model on that sample; a model that computes NaN in float32 cannot be "
                        "calibrated",
                    )

    def table(self) -> StatisticsTable:
        table = StatisticsTable(self.samples)
        for block, vectors in self.parts():
            table.update(block.statistic.kind, dict(zip(block.tensors, vectors, strict=True)))
        return table

    def restore(self, table: StatisticsTable) -> None:
        """Go on from what `table` holds.

        Raises:
            KeyError: it is of other tensors or statistics.
        """
        expected: dict[str, set[str]] = {}
        for block, _ in self.parts():
            expected.setdefault(block.statistic.kind, set()).update(block.tensors)
        if expected != {kind: set(vectors) for kind, vectors in table.vectors.items()}:
            raise KeyError
        restored = [np.array([table.vectors[b.statistic.kind][t] for t in b.tensors]) for b, _ in self.parts()]
        self.samples = table.samples
        self.vectors, self.judges = restored[: len(self.blocks)], restored[len(self.blocks) :]

    def parts(self) -> Iterator[tuple[Block, Vector]]:
        yield from zip(self.blocks, self.vectors, strict=True)
        yield from zip((b for _, b in self.held_out), self.judges, strict=True)


class _Checkpoint:
    """The runs so far, written beside the output every few seconds; it also collects the runs for a table."""

    def __init__(self, context: CompileContext, identity: str) -> None:
        self.path: Path | None = context.checkpoint
        self.context, self.identity = context, identity
        self.last = time.monotonic()
        self.first = context.calibrated is None
        if context.calibrated is None:
            context.calibrated = self.stored() or CalibrationTable(digest=self.digest)

    @property
    def digest(self) -> str:
        assert self.context.calibration is not None
        return self.context.calibration.digest()

    def stored(self) -> CalibrationTable | None:
        if not (self.context.resume and self.path and self.path.exists()):
            return None
        try:
            return CalibrationTable.load(self.path)
        except DataError:
            raise DataError("the checkpoint is damaged", where=str(self.path), hint="start without --resume") from None

    def finished(self, tally: _Tally) -> StatisticsTable | None:
        """What a calibration step before this one saw, if the model is still the same and it saw all that is wanted."""
        assert self.context.calibrated is not None
        assert self.context.calibration is not None
        run = None if self.first else self.context.calibrated.runs.get(self.identity)
        if run is None or run.statistics.samples < len(self.context.calibration):
            return None
        known = run.statistics.vectors
        missing = any(t not in known.get(b.statistic.kind, {}) for b, _ in tally.parts() for t in b.tensors)
        return None if missing else StatisticsTable(run.statistics.samples, known)

    def restore(self, tally: _Tally) -> None:
        """Go on from the checkpoint, if there is one.

        Raises:
            DataError: it is of another model, recipe or data set.
        """
        assert self.context.calibrated is not None
        known = self.context.calibrated
        run = known.runs.get(self.identity)
        try:
            if run is not None and known.digest == self.digest:
                tally.restore(run.statistics)
            elif known.runs and self.first:
                raise KeyError
        except KeyError:
            raise DataError(
                "the checkpoint belongs to another model, recipe or data set",
                where=str(self.path),
                hint="start without --resume",
            ) from None

    def save(self, tally: _Tally, finished: bool = False) -> None:
        assert self.context.calibrated is not None
        due = self.path is not None and time.monotonic() - self.last >= CHECKPOINT_SECONDS
        if due or finished:
            self.context.calibrated.runs[self.identity] = Run(tally.table())
        if due and self.path is not None:
            self.context.calibrated.save(self.path)
            self.last = time.monotonic()


def _identity(model: ir.Model, mask: str | None) -> str:
    """What the numbers depend on besides the samples: the model as it is, weights included, and the mask."""
    return hashlib.blake2b(f"{print_model(model)}\n{mask}".encode(), digest_size=16).hexdigest()


def _observable(wanted: Wanted) -> Wanted:
    """What the graph observes: held-out samples are not known to it."""
    return {tensor: [s for s in of_tensor if s is not HELD_OUT] for tensor, of_tensor in wanted.items()}


def _observed_as(statistic: Statistic) -> Statistic:
    return HISTOGRAM if statistic is HELD_OUT else statistic


def _mask(model: ir.Model, name: str | None) -> Mask | None:
    """The mask of the input called `name`.

    Raises:
        DataError: there is no such input, or its axes have no names that tensors could share.
    """
    if name is None:
        return None
    value = next((v for v in model.graph.inputs if v.name == name), None)
    if value is None:
        inputs = ", ".join(str(v.name) for v in model.graph.inputs)
        raise DataError(f"the model has no input '{name}' to serve as mask", hint=f"its inputs are {inputs}")
    dimensions = [None if d == 1 else d for d in value.shape or ()]
    names = tuple(None if d is None or isinstance(d, int) else d.value for d in dimensions)
    if not any(names) or any(d is not None and n is None for d, n in zip(dimensions, names, strict=True)):
        raise DataError(
            f"the axes of the mask '{name}' have no names, by which tensors with the same axes are found",
            where=f"{name} {value.shape}",
            hint="export the model with named dynamic axes, such as ['batch', 'length']",
        )
    return Mask(value, names)


def _counted(samples: Iterator[Sample], context: CompileContext) -> Iterator[Sample]:
    for sample in samples:
        yield sample
        context.progress.advance()
