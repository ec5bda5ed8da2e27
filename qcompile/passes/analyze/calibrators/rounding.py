"""What a grid does to the values of a histogram, exactly: the integral of the squared error over each bin.

    noise = sum_i n_i / w * integral over bin i of (x - x~)^2 dx,   x~ the nearest value of the grid, clipped

The integral has a closed form between two values of the grid, so bins may be wider or narrower than the
grid's steps; within a bin the values are taken as evenly spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from qcompile.compiler.formats import NumericFormat
from qcompile.compiler.params import params_from_range
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.statistics import Vector


@dataclass(frozen=True, eq=False)
class Grid:
    """The values of a format at scale 1.

    Attributes:
        values: sorted, shape [levels].
        thresholds: where rounding changes from one to the next, shape [levels - 1].
        energies: the integral of the squared error, from the first value to each value.
        uniform: the values are neighbouring integers, which needs no search.
    """

    values: Vector
    thresholds: Vector
    energies: Vector
    uniform: bool

    def integral(self, x: Vector) -> Vector:
        """An antiderivative of the squared error at `x`."""
        if self.uniform:
            nearest = np.clip(np.rint(x), self.values[0], self.values[-1])
            distance = x - nearest
            return np.asarray((nearest - self.values[0]) / 12 + distance * distance * distance / 3)
        at = np.searchsorted(self.thresholds, x)
        distance = x - self.values[at]
        return np.asarray(self.energies[at] + distance * distance * distance / 3)


@cache
def grid_of(fmt: NumericFormat) -> Grid:
    """The grid of a format of at most 16 bits."""
    if fmt.is_integer:
        values = np.arange(fmt.low, fmt.high + 1, dtype=np.float64)
    else:
        codes = np.arange(1 << fmt.bits, dtype=np.uint8).view(fmt.dtype.numpy()).astype(np.float64)
        values = np.unique(codes[np.isfinite(codes)])
    half = np.diff(values) / 2
    energies = np.concatenate([[0.0], np.cumsum(2 * half**3 / 3)])
    return Grid(values, values[:-1] + half, energies, fmt.is_integer)


def noise(spec: QuantSpec, edges: Vector, counts: Vector, low: Vector, high: Vector) -> Vector:
    """Sum of squared errors for each clip [low_k, high_k].

    Args:
        edges, counts: neighbouring bins, shapes [bins + 1] and [bins].
    """
    params = params_from_range(spec, low, high)
    scale = params.scale.astype(np.float64)[:, None]
    at = edges / scale + params.zero_point[:, None]
    errors = np.diff(grid_of(spec.format).integral(at), axis=1) * scale**3 / np.diff(edges)
    return np.asarray(errors @ counts)
