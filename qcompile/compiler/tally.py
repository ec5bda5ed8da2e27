"""Statistics merged sample by sample, and the checkpoint that a killed run goes on from."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

import numpy as np

from qcompile.compiler.calibration_table import CalibrationTable, Run, Wish
from qcompile.compiler.context import CompileContext
from qcompile.compiler.histogram import HELD_OUT, HISTOGRAM
from qcompile.compiler.observation import Block, Observation
from qcompile.compiler.statistics import StatisticsTable, Vector
from qcompile.errors import DataError

CHECKPOINT_SECONDS = 10.0
"""A checkpoint is written when the last one is older than this."""

_HELD_OUT_EVERY = 4
"""Every fourth sample judges the choice of the method `auto`."""


class Tally:
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

    @property
    def needed(self) -> list[Wish]:
        """Which statistics of which tensors it is about."""
        return [(block.statistic, tensor) for block, _ in self.parts() for tensor in block.tensors]

    def restore(self, table: StatisticsTable) -> None:
        """Go on from a table of the same layout."""
        restored = [np.array([table.vectors[b.statistic.kind][t] for t in b.tensors]) for b, _ in self.parts()]
        self.samples = table.samples
        self.vectors, self.judges = restored[: len(self.blocks)], restored[len(self.blocks) :]

    def parts(self) -> Iterator[tuple[Block, Vector]]:
        yield from zip(self.blocks, self.vectors, strict=True)
        yield from zip((b for _, b in self.held_out), self.judges, strict=True)


class Checkpoint:
    """The runs of a compilation so far, written beside the output every few seconds.

    Args:
        identity: of the model as it is.
        tally: the run that is under way.
        samples: how many it is to see.
    """

    def __init__(self, context: CompileContext, identity: str, tally: Tally, samples: int) -> None:
        assert context.calibration is not None
        self.path, self.tally, self.last = context.checkpoint, tally, time.monotonic()
        self.identity, self.samples = identity, samples
        needed = repr([(statistic.kind, tensor) for statistic, tensor in tally.needed])
        self.key = f"{identity} {hashlib.blake2b(needed.encode(), digest_size=8).hexdigest()}"
        digest = context.calibration.digest()
        if context.calibrated is None:
            resumed = context.resume and self.path is not None and self.path.exists()
            context.calibrated = self.stored(digest) if resumed else CalibrationTable(digest=digest)
        self.runs = context.calibrated

    def stored(self, digest: str) -> CalibrationTable:
        """The checkpoint of an interrupted run.

        Raises:
            DataError: it is damaged, or of another model, recipe or data set.
        """
        assert self.path is not None
        try:
            found = CalibrationTable.load(self.path)
        except DataError:
            raise DataError("the checkpoint is damaged", where=str(self.path), hint="start without --resume") from None
        if found.digest != digest or self.key not in found.runs:
            raise DataError(
                "the checkpoint belongs to another model, recipe or data set",
                where=str(self.path),
                hint="start without --resume",
            )
        return found

    def finished(self) -> StatisticsTable | None:
        """What an earlier step saw of the same model, if it saw all samples and all that is wanted."""
        try:
            run, lacking = self.runs.nearest(self.identity, self.tally.needed)
        except KeyError:
            return None
        if lacking or run.statistics.samples < self.samples:
            return None
        return StatisticsTable(run.statistics.samples, run.statistics.vectors)

    def restore(self) -> None:
        """Go on where an earlier run of the same layout on the same model ended."""
        if self.key in self.runs.runs:
            self.tally.restore(self.runs.runs[self.key].statistics)

    def save(self) -> None:
        """Write a checkpoint when one is due."""
        if self.path is None or time.monotonic() - self.last < CHECKPOINT_SECONDS:
            return
        self.keep()
        self.runs.save(self.path)
        self.last = time.monotonic()

    def finish(self) -> StatisticsTable:
        """The statistics of all samples."""
        self.save()
        return self.keep()

    def keep(self) -> StatisticsTable:
        run = self.runs.runs[self.key] = Run(self.tally.table())
        return run.statistics
