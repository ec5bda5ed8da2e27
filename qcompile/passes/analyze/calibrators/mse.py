"""Mean squared error: the clip for which rounding and clipping together disturb the values least.

    argmin over [low, high] of  sum (x - x~)^2

Clipping costs the few values outside, and gives finer steps to all the others. Both ends are searched in turn
(one magnitude for symmetric and floating formats), coarsely and then to the width of a bin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from qcompile.compiler.histogram import HISTOGRAM, histogram_of
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.statistics import Clip, Statistic, StatisticsTable, Vector
from qcompile.passes.analyze.calibrators.min_max import MinMax
from qcompile.passes.analyze.calibrators.rounding import noise

_FRACTIONS = np.unique(np.concatenate([np.geomspace(1 / 1024, 1 / 8, 8), np.linspace(1 / 8, 1, 29)]))
_FINE = 24
_ROUNDS = 2


@dataclass(frozen=True)
class MeanSquaredError:
    """The clip of the least squared error."""

    name: str = "mse"
    statistics: tuple[Statistic, ...] = (HISTOGRAM,)

    def clip(self, table: StatisticsTable, tensor: str, spec: QuantSpec) -> Clip:
        found, seen = histogram_of(table, tensor), table.range_of(tensor)
        if found is None or seen is None:
            return MinMax().clip(table, tensor, spec)
        edges, counts = found.occupied()
        edges = edges.clip(seen.low, seen.high)
        edges, counts = edges[_distinct(edges)], counts[np.diff(edges) > 0]
        low, high = min(seen.low, 0.0), max(seen.high, 0.0)
        if not counts.size:
            return Clip(low, high, self.name)
        cost = partial(_cost, spec, edges, counts)
        if spec.symmetric or not spec.format.is_integer:
            limit = _search(max(-low, high), lambda t: cost(-t, t))
            return Clip(-limit, limit, self.name)
        lowest, highest = -low, high
        for _ in range(_ROUNDS):
            high = _search(highest, partial(cost, low))
            low = 0.0 - _search(lowest, partial(_mirrored, cost, high))
        return Clip(low, high, self.name)


def _cost(spec: QuantSpec, edges: Vector, counts: Vector, low: Vector | float, high: Vector | float) -> Vector:
    return noise(spec, edges, counts, *np.broadcast_arrays(low, high))


def _mirrored(cost: Callable[[Vector, float], Vector], high: float, t: Vector) -> Vector:
    return cost(-t, high)


def _distinct(edges: Vector) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.concatenate([[True], np.diff(edges) > 0])


def _search(largest: float, cost: Callable[[Vector], Vector]) -> float:
    """The cheapest value in (0, largest]; the largest of equals."""
    if largest == 0:
        return 0.0
    tried = largest * _FRACTIONS
    best = _cheapest(cost(tried))
    around = tried[max(best - 1, 0)], tried[min(best + 1, tried.size - 1)]
    fine = np.append(np.linspace(*around, _FINE), tried[best])
    fine.sort()
    return float(fine[_cheapest(cost(fine))])


def _cheapest(costs: Vector) -> int:
    return int(costs.size - 1 - np.argmin(costs[::-1]))
