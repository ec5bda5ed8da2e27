"""Rounding with error feedback: the inputs of a layer are rounded in turn, each repairing what those before broke.

    min over codes  tr (W - Q) H (W - Q)^T,   H = R R^T,  R upper triangular
    a_j = w_j + sum_{i<j} (w_i - q_i) R_ij / R_jj,   q_j = nearest(a_j),   for the columns j in turn

GPTQ's paper writes the same with U = R^-1, the Cholesky factor of H^-1 = U^T U: its e_j = (a_j - q_j) / U_jj
is column j of (W - Q) R, so looking back needs no inverse. The loss is the sum of all e^2.

Where the layer reads x~ while the float model has x, and C = sum (x - x~) x~^T, GPTAQ adds what the codes can
make good of the difference: a_j += sum_{i<j} a_i M_ij / R_jj, M = alpha triu(C R^-T, 1). C = 0 is GPTQ.

Columns go in blocks of 128: what earlier blocks say is one matrix product. Source: Frantar et al., "GPTQ", 2023;
Li et al., "GPTAQ", 2025. Shapes: W [groups, K, N], H and C [groups, K, K]; sums in float32, factors in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

BLOCK = 128

Nearest = Callable[[int, Floats], tuple[Array, Floats]]
"""Codes of the values [groups, N] of one column, and what they stand for."""


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

    order: npt.NDArray[np.intp]
    errors: Floats
    values: Floats | None
    diagonal: npt.NDArray[np.float64]
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
    h = gram.astype(np.float64)
    size = h.shape[1]
    diagonal = np.diagonal(h, axis1=1, axis2=2)
    order = np.argsort(-diagonal, axis=1, kind="stable") if act_order else np.tile(np.arange(size), (len(h), 1))
    h = _ordered(h, order)
    mean = np.maximum(diagonal.mean(axis=1), np.finfo(np.float32).tiny)
    silent = np.take_along_axis(diagonal, order, 1) == 0
    while (factor := _upper_factor(h, damping * mean[:, None] + silent)) is None:
        damping *= 10
    upper = np.diagonal(factor, axis1=1, axis2=2)
    values: Floats | None = None
    if difference is not None:
        c = _ordered(difference.astype(np.float64), order)
        values = _each_by(alpha * np.tril(np.linalg.solve(factor, c.swapaxes(1, 2)), -1), upper)
    return Feedback(order, _each_by(factor.swapaxes(1, 2), upper), values, upper, damping)


def _each_by(rows: Array, upper: Array) -> Floats:
    return np.ascontiguousarray(rows / upper[:, :, None], np.float32)


def rounded(weight: Floats, back: Feedback, nearest: Nearest, codes: Array, block: int = BLOCK) -> None:
    """Write the codes of `weight`, [groups, K, N], into `codes`.

    Args:
        nearest: rounds column `order[., j]`; gets j, in the order of rounding.
    """
    size = weight.shape[1]
    missed, seen = np.empty_like(weight), np.empty_like(weight) if back.values is not None else None
    for start in range(0, size, block):
        end = min(start + block, size)
        shift = back.errors[:, start:end, :start] @ missed[:, :start]
        if seen is not None and back.values is not None:
            shift += back.values[:, start:end, :start] @ seen[:, :start]
        for j in range(start, end):
            exact = weight[:, j]
            aim = exact + shift[:, j - start]
            aim += (back.errors[:, j, None, start:j] @ missed[:, start:j])[:, 0]
            if seen is not None and back.values is not None:
                aim += (back.values[:, j, None, start:j] @ seen[:, start:j])[:, 0]
                seen[:, j] = aim
            codes[:, j], values = nearest(j, aim)
            missed[:, j] = exact - values


def _ordered(matrices: Array, order: npt.NDArray[np.intp]) -> Array:
    return np.stack([m[np.ix_(o, o)] for m, o in zip(matrices, order, strict=True)])


def _upper_factor(h: Array, added: Array) -> Array | None:
    """Upper triangular R with R R^T = H + diag(added), or None where H is not positive definite.

    It is the Cholesky factor of the matrix read backwards, read backwards."""
    damped = h.copy()
    index = np.arange(h.shape[1])
    damped[:, index, index] += added
    try:
        return np.linalg.cholesky(damped[:, ::-1, ::-1])[:, ::-1, ::-1]
    except np.linalg.LinAlgError:
        return None
