"""Entropy: the clip that keeps most of what the distribution says.

    argmin over t of KL(P || Q),   P = the histogram within [-t, t], what lies outside added to its ends,
    Q = P's inner part as the grid's levels show it: each level's count spread evenly over its non-empty bins

Source: the calibration of TensorRT (Migacz 2017). Every bin edge from as many bins as there are levels is a
candidate. Zeros, which a Relu makes in masses and every grid holds exactly, count no more than their
neighbours, and the levels are those that the format really has on each side of zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompile.compiler.histogram import HISTOGRAM, Histogram, histogram_of
from qcompile.compiler.params import params_from_range
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.statistics import Clip, Statistic, StatisticsTable, Vector
from qcompile.passes.analyze.calibrators.min_max import MinMax
from qcompile.passes.analyze.calibrators.rounding import grid_of

_AT_ONCE = 256
"""Candidates that are computed together: bounds the memory."""


@dataclass(frozen=True)
class Entropy:
    """The clip of the least relative entropy."""

    name: str = "entropy"
    statistics: tuple[Statistic, ...] = (HISTOGRAM,)

    def clip(self, table: StatisticsTable, tensor: str, spec: QuantSpec) -> Clip:
        found = histogram_of(table, tensor)
        if found is None:
            return MinMax().clip(table, tensor, spec)
        counts, first = _without_zeros(found)
        windows = candidates(counts.size, first, grid_of(spec.format).values.size)
        costs = [
            divergences(spec, found.width, counts, first, w)
            for w in np.array_split(windows, -(-len(windows) // _AT_ONCE))
        ]
        start, stop = windows[len(windows) - 1 - int(np.argmin(np.concatenate(costs)[::-1]))]
        return Clip(min((start + first) * found.width, 0.0), max((stop + first) * found.width, 0.0), self.name)


def candidates(bins: int, first: int, levels: int) -> npt.NDArray[np.intp]:
    """Windows [start, stop) of bins: those within [-t, t] for each t, from as many bins as there are levels.

    Args:
        first: number of the first bin, counted from zero.
    """
    limits = np.arange(1, max(-first, first + bins) + 1)
    windows = np.stack([np.maximum(-limits - first, 0), np.minimum(limits - first, bins)], axis=1)
    wide = windows[:, 1] - windows[:, 0] >= min(levels, bins)
    return np.asarray(windows[wide])


def divergences(spec: QuantSpec, width: float, counts: Vector, first: int, windows: npt.NDArray[np.intp]) -> Vector:
    """KL(P || Q) for each window, from running sums: a level costs the same however many bins it has."""
    start, stop = windows.T
    params = params_from_range(spec, (start + first) * width, (stop + first) * width)
    grid = (grid_of(spec.format).thresholds - params.zero_point[:, None]) * params.scale[:, None].astype(np.float64)
    bounds = np.clip(np.rint(grid / width).astype(np.intp) - first, start[:, None], stop[:, None])
    bounds = np.concatenate([start[:, None], bounds, stop[:, None]], axis=1)
    mass, filled, information = (_running(v) for v in (counts, counts > 0, _x_log_x(counts)))
    inside, bins = np.diff(mass[bounds], axis=1), np.diff(filled[bounds], axis=1)
    level = np.log(np.where(inside > 0, inside, 1) / np.where(bins > 0, bins, 1))
    total, kept = mass[-1], mass[stop] - mass[start]
    cross = (inside * level).sum(axis=1)
    own = information[stop] - information[start]
    rows = np.arange(len(windows))
    for outside, end, at in (
        (mass[start], start, np.argmax(bounds > start[:, None], axis=1) - 1),
        (total - mass[stop], stop - 1, np.argmax(bounds >= stop[:, None], axis=1) - 1),
    ):
        own += _x_log_x(counts[end] + outside) - _x_log_x(counts[end])
        shown = np.where(counts[end] > 0, level[rows, at], -np.inf)  # Q is zero where P is not: never the best
        cross += np.where(outside > 0, outside * np.where(outside > 0, shown, 0), 0)
    return np.asarray((own - cross) / total + np.log(np.maximum(kept, 1) / total))


def _without_zeros(found: Histogram) -> tuple[Vector, int]:
    """The occupied bins, the one of zero no higher than its neighbours; and the number of the first one."""
    edges, counts = found.occupied()
    first = round(edges[0] / found.width)
    zero = -first
    if 0 <= zero < counts.size:
        neighbours = [counts[i] for i in (zero - 1, zero + 1) if 0 <= i < counts.size]
        counts[zero] = min(counts[zero], max(neighbours, default=counts[zero]) or 1)
    return counts, first


def _running(values: npt.NDArray[np.generic]) -> Vector:
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _x_log_x(x: Vector) -> Vector:
    return np.asarray(x * np.log(np.where(x > 0, x, 1)))
