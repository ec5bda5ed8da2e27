"""Gram matrices: what a method that looks at the outputs of a linear layer needs to know of its inputs.

    H = sum_i x_i x_i^T        ||(W - Q) X||^2 = tr (W - Q) H (W - Q)^T

x_i: one row of K inputs, float32; H: [groups, K, K]. Sums over samples add up, so rows can be streamed, and
memory is one matrix however many rows there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Array = Any  # numpy.ndarray or torch.Tensor


@dataclass
class Gram:
    """The sum of x x^T over all rows so far.

    Attributes:
        matrix: float32 [groups, K, K], on the device of the rows.
        rows: how many rows it is the sum of.
    """

    matrix: Array
    rows: int = 0

    @classmethod
    def of(cls, x: Array) -> Gram:
        """That of the rows `x`, [groups, rows, K]."""
        return cls(x.swapaxes(1, 2) @ x, x.shape[1])

    def merge(self, other: Gram) -> None:
        """Take in the rows of `other`."""
        self.matrix += other.matrix
        self.rows += other.rows
