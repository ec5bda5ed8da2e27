"""Rounding with error feedback: the inputs of a layer are rounded in turn, each repairing what those before broke.

    min over codes  tr (W - Q) H (W - Q)^T,   H = R R^T,  R upper triangular
    a_j = w_j + sum_{i<j} (w_i - q_i) R_ij / R_jj,   q_j = nearest(a_j),   for the columns j in turn

GPTQ's paper writes the same with U = R^-1, the Cholesky factor of H^-1 = U^T U: its e_j = (a_j - q_j) / U_jj
is column j of (W - Q) R, so looking back needs no inverse. The loss is the sum of all e^2.

Where the layer reads x~ while the float model has x, and C = sum (x - x~) x~^T, GPTAQ adds what the codes can
make good of the difference: a_j += sum_{i<j} a_i M_ij / R_jj, M = alpha triu(C R^-T, 1). C = 0 is GPTQ.

Columns go in blocks of 128: what earlier blocks say is one matrix product. Source: Frantar et al., "GPTQ", 2023;
Li et al., "GPTAQ", 2025. Shapes: W [groups, K, N], H and C [groups, K, K]; sums in float32, factors in float64.
Written against the array API: numpy, or torch on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or torch.Tensor

BLOCK = 128

Nearest = Callable[[int, Array], tuple[Array, Array]]
"""Codes of the values [groups, N] of one column, and what they stand for."""

Ahead = Callable[[int, Array], None]
"""Sees the columns of a block, [groups, columns, N], as they are when their turn comes; gets the first one's number."""


@dataclass(frozen=True, eq=False)
class Feedback:
    """How the error of one column enters those behind it.

    Attributes:
        order: [groups, K], the columns in the order in which they are rounded.
        errors: R_ij / R_jj in that order at [., j, i], float32 [groups, K, K], zero above the diagonal.
        values: M_ij / R_jj likewise, or None where x is x~.
        diagonal: R_jj, float64 [groups, K].
        damping: the share of the mean of H's diagonal that was added to it.
    """

    order: Array
    errors: Array
    values: Array | None
    diagonal: Array
    damping: float


def feedback(
    gram: Array, damping: float, *, act_order: bool = True, difference: Array | None = None, alpha: float = 1.0
) -> Feedback:
    """The factors of H.

    Args:
        gram: X X^T without damping; a column of zeros is an input that never was anything but 0.
        damping: share of the mean of the diagonal to add to it; ten times as much, and again, while that is too
            little for the factor to exist.
        act_order: columns of large inputs first: they are rounded before errors have piled up.
        difference: C.
        alpha: how much of the difference is made good.
    """
    from array_api_compat import array_namespace

    xp = array_namespace(gram)
    h = xp.astype(gram, xp.float64)
    diagonal = xp.linalg.diagonal(h)
    places = xp.argsort(diagonal, axis=1, descending=True, stable=True)
    order = places if act_order else xp.sort(places, axis=1)
    h = _ordered(h, order, xp)
    diagonal = xp.linalg.diagonal(h)
    mean = xp.mean(diagonal, axis=1)[:, None] + float(np.finfo(np.float32).tiny)
    silent = xp.astype(diagonal == 0, xp.float64)
    while (factor := _upper_factor(h, damping * mean + silent, xp)) is None:
        damping *= 10
    upper = xp.linalg.diagonal(factor)
    values = None
    if difference is not None:
        c = _ordered(xp.astype(difference, xp.float64), order, xp)
        values = _each_by(alpha * xp.tril(xp.linalg.solve(factor, c.swapaxes(1, 2)), k=-1), upper, xp)
    return Feedback(order, _each_by(factor.swapaxes(1, 2), upper, xp), values, upper, damping)


def rounded(
    weight: Array, back: Feedback, nearest: Nearest, codes: Array, block: int = BLOCK, ahead: Ahead | None = None
) -> None:
    """Write the codes of `weight`, [groups, K, N], into `codes`.

    Args:
        nearest: rounds column `order[., j]`; gets j, in the order of rounding.
        ahead: looks at each block before it is rounded, where x~ is x.
    """
    from array_api_compat import array_namespace

    xp, size = array_namespace(weight), weight.shape[1]
    missed, seen = xp.empty_like(weight), xp.empty_like(weight) if back.values is not None else None
    for start in range(0, size, block):
        end = min(start + block, size)
        shift = back.errors[:, start:end, :start] @ missed[:, :start]
        if seen is not None and back.values is not None:
            shift += back.values[:, start:end, :start] @ seen[:, :start]
        if ahead is not None:
            within = back.errors[:, start:end, start:end]  # each column also makes good what it moves itself
            ahead(start, weight[:, start:end] + xp.linalg.solve(within, shift))
        for j in range(start, end):
            exact = weight[:, j]
            aim = exact + shift[:, j - start]
            aim += (back.errors[:, j, None, start:j] @ missed[:, start:j])[:, 0]
            if seen is not None and back.values is not None:
                aim += (back.values[:, j, None, start:j] @ seen[:, start:j])[:, 0]
                seen[:, j] = aim
            codes[:, j], values = nearest(j, aim)
            missed[:, j] = exact - values


def _ordered(matrices: Array, order: Array, xp: Any) -> Array:
    return xp.stack([m[o, :][:, o] for m, o in zip(matrices, order, strict=True)])


def _each_by(rows: Array, upper: Array, xp: Any) -> Array:
    """Each row divided by its number, as float32 rows that lie one after the other."""
    from array_api_compat import device

    found = xp.empty(rows.shape, dtype=xp.float32, device=device(rows))
    found[...] = rows / upper[:, :, None]
    return found


def _upper_factor(h: Array, added: Array, xp: Any) -> Array | None:
    """Upper triangular R with R R^T = H + diag(added), or None where H is not positive definite.

    It is the Cholesky factor of the matrix read backwards, read backwards."""
    from array_api_compat import device

    damped, index = xp.asarray(xp.flip(h, axis=(1, 2)), copy=True), xp.arange(h.shape[1], device=device(h))
    damped[:, index, index] += xp.flip(added, axis=1)
    try:
        return xp.flip(xp.linalg.cholesky(damped), axis=(1, 2))
    except (np.linalg.LinAlgError, RuntimeError):  # numpy's, and torch's
        return None
