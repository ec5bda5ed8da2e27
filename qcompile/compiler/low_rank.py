"""The matrix of a given rank that is nearest to a weight, in the metric of what the layer reads.

    min over Z of rank r  tr (W - Z) M (W - Z)^T = sum_{i>r} sigma_i^2,   sigma_i: singular values of W S, M = S S^T
    Z = U_r U_r^T W,   U: left singular vectors of W S

M = X X^T makes that the error of the layer's outputs, ||(W - Z) X||^2, exactly; M = 1 that of the weight itself. The
squares of sigma and one side of vectors are the eigenvalues and vectors of a symmetric matrix of the smaller side:
of W M W^T, or of S^T W^T W S where the outputs are more than the inputs.

Source: Eckart and Young, 1936; the metric as in Wang et al., "SVD-LLM", 2024 (arXiv:2403.07378), which whitens by the
Cholesky factor of X X^T. Shapes: W [groups, N, K], M [groups, K, K]; computed in float64, against the array API.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Array = Any  # numpy.ndarray or torch.Tensor


@dataclass(frozen=True, eq=False)
class Factors:
    """Z = left right, of one rank in all groups.

    Attributes:
        left: what makes the outputs, float64 [groups, N, r]; as `truncated` gives it, its columns are orthonormal.
        right: what reads the inputs, float64 [groups, r, K].
    """

    left: Array
    right: Array

    @property
    def rank(self) -> int:
        return int(self.right.shape[1])

    @property
    def product(self) -> Array:
        return self.left @ self.right


@dataclass(frozen=True, eq=False)
class Decomposition:
    """A weight in its directions, those that matter most first.

    Attributes:
        weight: W, float64.
        directions: U, float64 [groups, N, min(N, K)].
        energies: sigma_i^2, float64 [groups, min(N, K)], descending.
    """

    weight: Array
    directions: Array
    energies: Array

    def truncated(self, rank: int) -> Factors:
        """The nearest matrix of rank `rank`."""
        left = self.directions[:, :, :rank]
        return Factors(left, left.swapaxes(1, 2) @ self.weight)

    def errors(self, metric: Array | None = None) -> Array:
        """What truncation loses, summed over groups, for each rank from 0 to min(N, K).

        Args:
            metric: in which it is measured; left out, the one of the decomposition.
        """
        from array_api_compat import array_namespace

        xp, lost = array_namespace(self.energies), self.energies
        if metric is not None:
            rows = self.directions.swapaxes(1, 2) @ self.weight
            lost = ((rows @ xp.astype(metric, xp.float64)) * rows).sum(axis=2)
        lost = xp.flip(lost.sum(axis=0), axis=(0,))
        return xp.flip(xp.concat([xp.zeros_like(lost[:1]), xp.cumulative_sum(lost, axis=0)]), axis=(0,))


def decomposed(weight: Array, metric: Array | None = None) -> Decomposition:
    """The directions of `weight`.

    Args:
        metric: M, positive definite; left out, the unit matrix.
    """
    from array_api_compat import array_namespace

    xp = array_namespace(weight)
    w = xp.astype(weight, xp.float64)
    m = None if metric is None else xp.astype(metric, xp.float64)
    if w.shape[1] <= w.shape[2]:
        energies, directions = _largest_first((w if m is None else w @ m) @ w.swapaxes(1, 2), xp)
        return Decomposition(w, directions, energies)
    seen = w if m is None else w @ xp.linalg.cholesky(m)
    energies, inputs = _largest_first(seen.swapaxes(1, 2) @ seen, xp)
    directions, _ = xp.linalg.qr(seen @ inputs)  # orthogonal but for their length, which may be 0
    return Decomposition(w, directions, energies)


def _largest_first(symmetric: Array, xp: Any) -> tuple[Array, Array]:
    values, vectors = xp.linalg.eigh(symmetric)
    return xp.clip(xp.flip(values, axis=(1,)), 0.0, None), xp.flip(vectors, axis=(2,))
