"""Moving average: the bounds of a typical sample, rather than those of the most extreme one.

    m_0 = x_0,   m_t = (1 - c) m_(t-1) + c x_t,   c = 0.01, for the smallest and the largest value of each sample

Kept as (decay, sum, first) with m = sum + decay * first, so that runs of samples merge, in their order:
    (d1, s1, f1) (d2, s2, f2) = (d1 d2, s1 d2 + s2, f1).
Source: the averaging constant of quantization-aware training observers (Jacob et al. 2018, arXiv:1712.05877).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.statistics import RANGE, Clip, Statistic, StatisticsTable, Vector
from qcompile.passes.analyze.calibrators.min_max import MinMax

WEIGHT = 0.01
"""c, the weight of the newest sample."""


class _Averages(Statistic):
    """A vector is decay, sum and first of the minimum, sum and first of the maximum."""

    def __init__(self) -> None:
        super().__init__("moving average", RANGE.components[:2])

    def identity(self, channels: int = 1) -> Vector:
        return np.array([1.0, 0.0, 0.0, 0.0, 0.0])

    def lift(self, observed: Vector) -> Vector:
        vectors = np.array([[1 - WEIGHT, WEIGHT * low, low, WEIGHT * high, high] for low, high in observed])
        vectors[observed[:, 0] > observed[:, 1]] = self.identity()  # it was not computed in this sample
        return vectors

    def merge(self, a: Vector, b: Vector) -> Vector:
        decay = b[..., :1]
        merged = np.concatenate([a[..., :1] * decay, a[..., 1:] * decay + b[..., 1:]], axis=-1)
        firsts = [2, 4]
        merged[..., firsts] = np.where(a[..., :1] == 1, b[..., firsts], a[..., firsts])
        return merged


AVERAGES = _Averages()


@dataclass(frozen=True)
class MovingAverage:
    """The moving averages of the samples' bounds."""

    name: str = "moving-average"
    statistics: tuple[Statistic, ...] = (AVERAGES,)

    def clip(self, table: StatisticsTable, tensor: str, spec: QuantSpec) -> Clip:
        vector = table.vector_of(AVERAGES, tensor)
        if vector is None:
            return MinMax().clip(table, tensor, spec)
        decay, low, first_low, high, first_high = (float(v) for v in vector)
        return Clip(low + decay * first_low, high + decay * first_high, self.name)
