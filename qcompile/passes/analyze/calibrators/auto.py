"""Auto: for each tensor the method whose clip disturbs it least, on samples that had no say in that clip.

    argmin over methods m of  noise(held-out values, clip_m(other values))

The method is chosen with every fourth sample held out; its clip then comes from all samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcompile.compiler.histogram import HELD_OUT, HISTOGRAM, histogram_of
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.statistics import RANGE, Calibrator, Clip, Statistic, StatisticsTable
from qcompile.passes.analyze.calibrators.min_max import MinMax
from qcompile.passes.analyze.calibrators.rounding import noise


@dataclass(frozen=True)
class Auto:
    """The best of `methods`, the first of equals."""

    methods: tuple[Calibrator, ...]
    name: str = "auto"

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return tuple(dict.fromkeys([*(s for m in self.methods for s in m.statistics), HISTOGRAM, HELD_OUT]))

    def clip(self, table: StatisticsTable, tensor: str, spec: QuantSpec) -> Clip:
        every = histogram_of(table, tensor)
        if every is None:
            return MinMax().clip(table, tensor, spec)
        judge, others = histogram_of(table, tensor, HELD_OUT), table
        if judge is None or judge.counts.sum() == every.counts.sum():
            judge = every
        else:
            others = _without(table, tensor)
        edges, counts = judge.occupied()
        clips = [others.clip_by(m, tensor, spec) for m in self.methods]
        costs = noise(spec, edges, counts, np.array([c.low for c in clips]), np.array([c.high for c in clips]))
        return self.methods[int(np.argmin(costs))].clip(table, tensor, spec)


def _without(table: StatisticsTable, tensor: str) -> StatisticsTable:
    """The statistics of one tensor without the held-out samples; moving averages are taken as they are."""
    every, held_out, seen = histogram_of(table, tensor), histogram_of(table, tensor, HELD_OUT), table.range_of(tensor)
    assert every is not None
    assert held_out is not None
    assert seen is not None
    rest = every.without(held_out)
    edges, _ = rest.occupied()
    bounds = np.clip([edges[0], edges[-1]], seen.low, seen.high)
    vectors = {kind: {tensor: of[tensor]} for kind, of in table.vectors.items() if tensor in of}
    vectors[RANGE.kind] = {tensor: np.array([*bounds, *vectors[RANGE.kind][tensor][2:]])}
    vectors[HISTOGRAM.kind] = {tensor: rest.vector}
    return StatisticsTable(table.samples, vectors)
