"""Calibration: walk the samples once and observe every tensor that a later pass asks about.

    v_t = merge_i observe(x_t,i)   over samples i, for all tensors t in the same run.

Source: min-max calibration as in the ONNX and TensorRT tools, here with mergeable statistics of
constant size (compiler/statistics.py) that the graph itself computes (compiler/observation.py).
Memory does not grow with the samples; a checkpoint is written while it runs, and `--resume` goes on.

Errors: DataError when there are no samples, or when a tensor becomes NaN (it names the tensor and the
sample).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.observation import Place, observed_copy
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.printer import print_model
from qcompile.compiler.serialization import runnable
from qcompile.compiler.statistics import Statistic, StatisticsTable, Vector
from qcompile.errors import DataError
from qcompile.runtime.calibration import run_samples

CHECKPOINT_SECONDS = 10.0
"""A checkpoint is written when the last one is older than this."""


class Calibrate(Pass):
    """Observe the ranges of activations on the calibration samples."""

    name: ClassVar[str] = "calibrate"
    phase: ClassVar[Phase] = Phase.ANALYZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})

    method: Literal["min-max"] = Field(
        default="min-max", description="`min-max` takes the smallest and largest value seen"
    )

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        if context.calibration is None or len(context.calibration) == 0:
            raise DataError(
                "no calibration samples",
                hint="give representative inputs with --calib, or ask for made-up ones with --calib synthetic",
            )
        wanted: dict[str, list[Statistic]] = {}
        for request in context.requests:
            wanted.setdefault(request.value, []).append(request.statistic)
        if wanted:
            context.statistics = _observe(model, wanted, context)
        return False


def _observe(model: ir.Model, wanted: dict[str, list[Statistic]], context: CompileContext) -> StatisticsTable:
    assert context.calibration is not None
    copy, places = observed_copy(model, wanted)
    if not places:
        return StatisticsTable()
    blocks = _blocks(places)
    total = np.empty(places[-1].stop)
    for place in places:
        total[place.indices] = place.statistic.identity(place.channels)
    checkpoint = _Checkpoint(context, copy)
    done, total = checkpoint.load(total)
    samples = itertools.islice(iter(context.calibration), done, None)
    context.progress.start("calibrating", len(context.calibration))
    context.progress.advance(done)
    with ExitStack() as stack:
        path_or_bytes = stack.enter_context(runnable(copy))
        for [output] in run_samples(path_or_bytes, _counted(samples, context), context.target.providers):
            vector = output.astype(np.float64)
            _refuse_nan(vector, places, done)
            for statistic, at in blocks:
                total[at] = statistic.merge(total[at], vector[at])
            done += 1
            checkpoint.save(done, total)
    context.progress.finish()
    checkpoint.remove()
    return _table(places, total, done)


def _blocks(places: list[Place]) -> list[tuple[Statistic, npt.NDArray[np.intp]]]:
    """Vectors of one statistic and one length merge together: their indices [tensors, length] in the output."""
    found: dict[tuple[Statistic, int], list[npt.NDArray[np.intp]]] = {}
    for place in places:
        found.setdefault((place.statistic, place.stop - place.start), []).append(place.indices)
    return [(statistic, np.array(at)) for (statistic, _), at in found.items()]


def _counted(samples: Iterator[Sample], context: CompileContext) -> Iterator[Sample]:
    for sample in samples:
        yield sample
        context.progress.advance()


def _refuse_nan(vector: Vector, places: list[Place], sample: int) -> None:
    """NaN anywhere makes a sum of magnitudes NaN. Infinity (a mask) is a bound: such a tensor stays float."""
    if not np.isnan(vector).any():
        return
    for place in places:
        if np.isnan(place.statistic.component("magnitude", vector[place.indices])).any():
            raise DataError(
                f"tensor '{place.tensor}' holds NaN for calibration sample {sample}",
                where=place.tensor,
                hint="run the float model on that sample; a model that computes NaN in float32 cannot be calibrated",
            )


def _table(places: list[Place], total: Vector, samples: int) -> StatisticsTable:
    table = StatisticsTable(samples=samples)
    for place in places:
        table.update(place.statistic.kind, {place.tensor: total[place.start : place.stop]})
    return table


class _Checkpoint:
    """The merged vector so far, written beside the output every few seconds by rename."""

    def __init__(self, context: CompileContext, observed: ir.Model) -> None:
        self.path: Path | None = context.checkpoint
        self.context, self.observed = context, observed
        self.last = time.monotonic()

    @cached_property
    def identity(self) -> str:
        """What the numbers depend on: the samples and the model, weights included."""
        assert self.context.calibration is not None
        model = hashlib.blake2b(print_model(self.observed).encode(), digest_size=16).hexdigest()
        return json.dumps([self.context.calibration.digest(), model])

    def load(self, identity: Vector) -> tuple[int, Vector]:
        """Samples done and their merged vector; (0, identity) without a checkpoint.

        Raises:
            DataError: the checkpoint is of another model, recipe or data set.
        """
        if not (self.context.resume and self.path and self.path.exists()):
            return 0, identity
        try:
            with np.load(self.path) as stored:
                if str(stored["identity"]) != self.identity:
                    raise DataError(
                        "the checkpoint belongs to another model, recipe or data set",
                        where=str(self.path),
                        hint="start without --resume",
                    )
                return int(stored["done"]), stored["total"]
        except (OSError, EOFError, TypeError, ValueError, KeyError, zipfile.BadZipFile):
            raise DataError("the checkpoint is damaged", where=str(self.path), hint="start without --resume") from None

    def save(self, done: int, total: Vector) -> None:
        if self.path is None or time.monotonic() - self.last < CHECKPOINT_SECONDS:
            return
        self.last = time.monotonic()
        with self._temporary(self.path).open("wb") as file:
            np.savez(file, identity=self.identity, done=done, total=total)
        self._temporary(self.path).replace(self.path)

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self._temporary(self.path).unlink(missing_ok=True)

    @staticmethod
    def _temporary(path: Path) -> Path:
        return path.with_name(path.name + ".tmp")
