"""Histograms that rescale exactly: constant memory, any range, and shards merge bit for bit.

    bin of x = floor(x / 2^e),   e the smallest exponent for which the largest |x| fits into BINS bins

Widths are powers of two and the bins lie symmetric about zero, so a coarser histogram is pairs of bins added
up: floor(floor(x / w) / 2) = floor(x / 2w). Merging therefore loses nothing that the wider histogram could
have known, in whatever order it happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from qcompile.compiler.statistics import Component, Statistic, StatisticsTable, Vector

Number = TypeVar("Number", np.int64, np.float64)

BINS = 4096
"""At least 1024 of them lie on the side of the largest value."""

HALF = BINS // 2

LOWEST, HIGHEST = -126, 117
"""Exponents: 1 / 2^e is a normal float32 number, and HALF * 2^HIGHEST is beyond the largest one."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of the values of one tensor.

    Attributes:
        exponent: the bins are 2^exponent wide.
        counts: of [(i - HALF) * width, (i + 1 - HALF) * width), shape [BINS].
    """

    exponent: int
    counts: npt.NDArray[np.int64]

    @property
    def width(self) -> float:
        return 2.0**self.exponent

    def occupied(self) -> tuple[Vector, Vector]:
        """Edges [n + 1] and counts [n] of the bins from the first to the last that is not empty."""
        filled = np.flatnonzero(self.counts)
        if not filled.size:
            return np.zeros(1), np.zeros(0)
        first, last = int(filled[0]), int(filled[-1])
        edges = (np.arange(first, last + 2, dtype=np.float64) - HALF) * self.width
        return edges, self.counts[first : last + 1].astype(np.float64)

    @property
    def vector(self) -> Vector:
        return np.concatenate([[self.exponent], self.counts])

    def without(self, part: Histogram) -> Histogram:
        """The histogram of the other values; `part` is one of some of them."""
        return Histogram(self.exponent, self.counts - coarser(part.counts, self.exponent - part.exponent))


def coarser(counts: npt.NDArray[Number], steps: int) -> npt.NDArray[Number]:
    """The same values in bins 2^steps times as wide."""
    steps = min(steps, HALF.bit_length() - 1)  # further on, one bin on each side of zero takes them all
    if steps == 0:
        return counts
    merged = np.zeros_like(counts)
    start = HALF - (HALF >> steps)
    merged[start : BINS - start] = counts.reshape(BINS >> steps, 1 << steps).sum(axis=1)
    return merged


class _Histograms(Statistic):
    """A vector is the exponent followed by the counts."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind, (Component("scale", "Scale", "Min", np.inf),))

    def identity(self, channels: int = 1) -> Vector:
        return np.concatenate([[LOWEST], np.zeros(BINS)])

    def merge(self, a: Vector, b: Vector) -> Vector:
        exponents = np.maximum(a[..., 0], b[..., 0])
        merged = a + b
        merged[..., 0] = exponents
        for at in np.argwhere(a[..., 0] != b[..., 0]):
            i = tuple(at)
            merged[i][1:] = sum(coarser(v[i][1:], int(exponents[i] - v[i][0])) for v in (a, b))
        return merged


HISTOGRAM = _Histograms("histogram")

HELD_OUT = _Histograms("histogram of held-out samples")
"""The histogram of every fourth sample alone, which HISTOGRAM contains too: to judge a choice on data that
did not take part in it."""


def histogram_of(table: StatisticsTable, name: str, statistic: Statistic = HISTOGRAM) -> Histogram | None:
    """The histogram of tensor `name`, or None where it was not observed or has no values."""
    vector = table.vector_of(statistic, name)
    if vector is None or not vector[1:].any():
        return None
    return Histogram(int(vector[0]), vector[1:].astype(np.int64))
