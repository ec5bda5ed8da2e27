"""Gram matrices: what a method that looks at the outputs of a linear layer needs to know of its inputs.

    H = sum_i x_i x_i^T        ||(W - Q) X||^2 = tr (W - Q) H (W - Q)^T

x_i: one row of K inputs, float32; H: [groups, K, K]. Where the layers before have been changed and the unchanged
model reads x_i + m_i,

    D = sum_i m_i x_i^T,  E = sum_i m_i m_i^T     ||Q X - W (X + M)||^2 = tr (W - Q) H (W - Q)^T
                                                                          + 2 tr W D (W - Q)^T + tr W E W^T

Sums over samples add up, so rows can be streamed, and memory is a few matrices however many rows there are. With the
sums of x_i and m_i, what a layer with a free bias is judged by follows: the same matrices around the means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

Array = Any  # numpy.ndarray or torch.Tensor


@dataclass
class Gram:
    """The sum of x x^T over all rows so far.

    Attributes:
        matrix: H, float32 [groups, K, K], on the device of the rows.
        rows: how many rows it is the sum of.
        drift: D and E, likewise; None where what the unchanged model reads was not asked for.
        sums: of x_i and, beside a drift, of m_i, [groups, K] each.
    """

    matrix: Array
    rows: int = 0
    drift: tuple[Array, Array] | None = None
    sums: tuple[Array, ...] = ()

    @classmethod
    def of(cls, x: Array, exact: Array | None = None) -> Gram:
        """That of the rows `x`, [groups, rows, K].

        Args:
            exact: what the unchanged model reads in their place.
        """
        missed = None if exact is None else exact - x
        drift = None if missed is None else (missed.swapaxes(1, 2) @ x, missed.swapaxes(1, 2) @ missed)
        sums = tuple(a.sum(axis=1) for a in (x, missed) if a is not None)
        return cls(x.swapaxes(1, 2) @ x, x.shape[1], drift, sums)

    def merge(self, other: Gram) -> None:
        """Take in the rows of `other`."""
        self.matrix += other.matrix
        self.rows += other.rows
        for mine, more in zip((*(self.drift or ()), *self.sums), (*(other.drift or ()), *other.sums), strict=True):
            mine += more

    @property
    def means(self) -> tuple[Array, ...]:
        """E x and, beside a drift, E m."""
        return tuple(total / self.rows for total in self.sums)

    def centred(self) -> Gram:
        """The same sums for x - E x and m - E m, in float64."""

        def around(matrix: Array, a: Array, b: Array) -> Array:
            xp = array_namespace(matrix)
            a, b = xp.astype(a, xp.float64), xp.astype(b, xp.float64)
            return xp.astype(matrix, xp.float64) - a[:, :, None] * b[:, None, :] / self.rows

        x = self.sums[0]
        drift = None
        if self.drift is not None:
            m = self.sums[1]
            drift = around(self.drift[0], m, x), around(self.drift[1], m, m)
        return Gram(around(self.matrix, x, x), self.rows, drift, tuple(total * 0 for total in self.sums))
