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
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar, Literal

import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.calibration_table import TableSamples
from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.histogram import HELD_OUT
from qcompile.compiler.mask import Mask
from qcompile.compiler.observation import Observation, observe
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.printer import print_model
from qcompile.compiler.serialization import runnable
from qcompile.compiler.statistics import RANGE, Statistic, StatisticsTable
from qcompile.compiler.tally import Checkpoint, Tally
from qcompile.errors import DataError
from qcompile.passes.analyze.calibrators import calibrator
from qcompile.runtime.calibration import calibration_provider, read_samples
from qcompile.runtime.device import Device
from qcompile.runtime.providers import CPU, CUDA, why_not_loaded

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

    hold_back: int = Field(
        default=0,
        ge=0,
        description="samples at the end that are not observed, so that a pass behind can judge by them; "
        "never more than a quarter of all",
    )

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        if context.without_samples:
            return False
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
            identity = _identity(model, self.mask)
            known = self.known(model, wanted, identity, context)
            context.statistics = known or self.observed(model, wanted, identity, context)
            context.statistics.calibrator = chosen
            if self.method == "auto":
                self.say_choices(context)
        return False

    def known(self, model: ir.Model, wanted: Wanted, identity: str, context: CompileContext) -> StatisticsTable | None:
        """The statistics of `wanted` in a calibration table, None where there is no table.

        Raises:
            DataError: the table is of another model or lacks statistics.
        """
        if not isinstance(context.calibration, TableSamples):
            return None
        source = context.calibration
        tally = _tally(observe(model, _observable(wanted)), wanted)
        try:
            run, lacking = source.table.nearest(identity, tally.needed)
        except KeyError:
            raise DataError(
                "the calibration table belongs to another model, or to a recipe that prepares it otherwise",
                where=str(source.path),
                hint=f"it was made for {source.table.model} with the recipe {source.table.recipe}; make one for this "
                "model and recipe with `qcompile calibrate`",
            ) from None
        if lacking:
            statistic, tensor = lacking[0]
            raise DataError(
                f"the calibration table has no {statistic.kind} of {len(lacking)} tensors, such as '{tensor}'",
                where=str(source.path),
                hint="make it anew with `qcompile calibrate` and the recipe and options of this command",
            )
        return StatisticsTable(run.statistics.samples, run.statistics.vectors)

    def observed(self, model: ir.Model, wanted: Wanted, identity: str, context: CompileContext) -> StatisticsTable:
        """The statistics of `wanted` over all samples, from a checkpoint on where there is one."""
        assert context.calibration is not None
        providers = context.float_providers
        on_device = calibration_provider(providers) != CPU
        if context.device is not Device.CPU and not on_device:
            context.notice(f"the model itself ran on the CPU while it was observed: {why_not_loaded(CUDA)}")
        observation = observe(
            model, _observable(wanted), mask=Mask.named(self.mask, model) if self.mask else None, on_device=on_device
        )
        self.notices(observation, wanted, context)
        tally = _tally(observation, wanted)
        total = len(context.calibration) - min(self.hold_back, len(context.calibration) // 4)
        checkpoint = Checkpoint(context, identity, tally, total)
        if (before := checkpoint.finished()) is not None:
            return before
        checkpoint.restore()
        context.progress.start("calibrating", total)
        context.progress.advance(tally.samples)
        if observation.blocks and tally.samples < total:
            samples = _counted(itertools.islice(iter(context.calibration), tally.samples, total), context)
            with runnable(observation.model) as path_or_bytes:
                for seen in read_samples(path_or_bytes, samples, providers, observation.read):
                    tally.add(seen)
                    checkpoint.save()
        context.progress.finish()
        return checkpoint.finish()

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

    def say_choices(self, context: CompileContext) -> None:
        """How often `auto` took which method."""
        table, spec = context.statistics, context.target.activation
        clips = [clip for name in table.vectors.get(RANGE.kind, {}) if (clip := table.clip_of(name, spec))]
        counts = Counter(clip.method for clip in clips).most_common()
        context.notice("calibration auto: " + ", ".join(f"{n} {method}" for method, n in counts))


def _identity(model: ir.Model, mask: str | None) -> str:
    """What the numbers depend on besides the samples: the model as it is, weights included, and the mask."""
    return hashlib.blake2b(f"{print_model(model)}\n{mask}".encode(), digest_size=16).hexdigest()


def _observable(wanted: Wanted) -> Wanted:
    """What the graph observes: held-out samples are not known to it."""
    return {tensor: [s for s in of_tensor if s is not HELD_OUT] for tensor, of_tensor in wanted.items()}


def _tally(observation: Observation, wanted: Wanted) -> Tally:
    return Tally(observation, judged=any(HELD_OUT in of_tensor for of_tensor in wanted.values()))


def _counted(samples: Iterator[Sample], context: CompileContext) -> Iterator[Sample]:
    for sample in samples:
        yield sample
        context.progress.advance()
