"""Gram matrices: what a method that looks at the outputs of a linear layer needs to know of its inputs.

    H = sum_i x_i x_i^T        ||(W - Q) X||^2 = tr (W - Q) H (W - Q)^T

x_i: one row of K inputs, float32; H: [groups, K, K]. Where the layers before have been changed and the unchanged
model reads x_i + m_i,

    D = sum_i m_i x_i^T,  E = sum_i m_i m_i^T     ||Q X - W (X + M)||^2 = tr (W - Q) H (W - Q)^T
                                                                          + 2 tr W D (W - Q)^T + tr W E W^T

Sums over samples add up, so rows can be streamed, and memory is a few matrices however many rows there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Array = Any  # numpy.ndarray or torch.Tensor


@dataclass
class Gram:
    """The sum of x x^T over all rows so far.

    Attributes:
        matrix: H, float32 [groups, K, K], on the device of the rows.
        rows: how many rows it is the sum of.
        drift: D and E, likewise; None where what the unchanged model reads was not asked for.
    """

    matrix: Array
    rows: int = 0
    drift: tuple[Array, Array] | None = None

    @classmethod
    def of(cls, x: Array, exact: Array | None = None) -> Gram:
        """That of the rows `x`, [groups, rows, K].

        Args:
            exact: what the unchanged model reads in their place.
        """
        missed = None if exact is None else exact - x
        drift = None if missed is None else (missed.swapaxes(1, 2) @ x, missed.swapaxes(1, 2) @ missed)
        return cls(x.swapaxes(1, 2) @ x, x.shape[1], drift)

    def merge(self, other: Gram) -> None:
        """Take in the rows of `other`."""
        self.matrix += other.matrix
        self.rows += other.rows
        for mine, more in zip(self.drift or (), other.drift or (), strict=True):
            mine += more
