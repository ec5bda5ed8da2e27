"""Percentile: all but the rarest values.

    symmetric:   share of |x| <= t is p, clip [-t, t]
    asymmetric:  (1 - p) / 2 of the values lie below the clip and as many above

Read off the histogram, linear within a bin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompile.compiler.histogram import BINS, HALF, HISTOGRAM, histogram_of
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.statistics import Clip, Statistic, StatisticsTable, Vector
from qcompile.passes.analyze.calibrators.min_max import MinMax


@dataclass(frozen=True)
class Percentile:
    """The central `percent` of the values."""

    percent: float = 99.999
    name: str = "percentile"
    statistics: tuple[Statistic, ...] = (HISTOGRAM,)

    def clip(self, table: StatisticsTable, tensor: str, spec: QuantSpec) -> Clip:
        found = histogram_of(table, tensor)
        if found is None:
            return MinMax().clip(table, tensor, spec)
        share = self.percent / 100
        if spec.symmetric or not spec.format.is_integer:
            magnitudes = found.counts[HALF:] + found.counts[HALF - 1 :: -1]
            edges = np.arange(HALF + 1, dtype=np.float64) * found.width
            limit = _quantile(magnitudes, edges, share)
            return Clip(-limit, limit, self.name)
        edges = (np.arange(BINS + 1, dtype=np.float64) - HALF) * found.width
        tail = (1 - share) / 2
        return Clip(_quantile(found.counts, edges, tail), _quantile(found.counts, edges, 1 - tail), self.name)


def _quantile(counts: npt.NDArray[np.int64], edges: Vector, share: float) -> float:
    """The value below which `share` of the counted values lie."""
    below = np.concatenate([[0], np.cumsum(counts)])
    wanted = share * below[-1]
    last = int(np.searchsorted(below, wanted, side="left")) - 1  # the bin in which it is reached
    last = min(max(last, 0), counts.size - 1)
    inside = (wanted - below[last]) / max(int(counts[last]), 1)
    return float(edges[last] + inside * (edges[last + 1] - edges[last]))
