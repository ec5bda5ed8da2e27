"""Recovery by least squares: the weights that an edit leaves are solved anew, so that they make good what it took.

    min over V  tr (V - W) H (V - W)^T - 2 tr V D^T W^T + const     V H = W (H + D)  where V may be anything

H, D: what the layer reads (gram.py); W: what it computed before any edit. The positions that an edit leaves say what
V may be, and the solution is in closed form:

    columns S kept       V_S = (W (H + D))_S  H_SS^-1
    in the span of B     V = U B,  U = W (H + D) B^T (B H B^T)^-1
    positions of a mask  each row has an H of its own: conjugate gradients over all rows at once, a step one product
                         with H, preconditioned by the diagonal of H; no step makes the loss larger

`damping` times the mean of H's diagonal is added to H, as a weight on V - W: inputs of which samples say nothing leave
weights as they were. Left out it is K / rows, in a span r / rows, a hundredth at least: what few rows say of many
unknowns is true of these rows alone.
Shapes: W, V [groups, N, K], B [groups, r, K]. Written against the array API; H in float64 where it is solved, float32
in products.
Source: Hestenes and Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from qcompile.compiler.gram import Gram
from qcompile.compiler.reporting.wording import count

Array = Any  # numpy.ndarray or torch.Tensor

DAMPING = 0.01
"""The least, as a share."""

STEPS = 10
"""Behind which masked weights gain less on other samples than a hundredth of what the first steps gained."""


def on_columns(weight: Array, gram: Gram, columns: Array, damping: float | None = None) -> Array:
    """V for the input columns that are kept: [groups, N, kept].

    Args:
        columns: indices [groups, kept]; every group keeps as many.
    """
    xp = array_namespace(weight)
    h, goal = _equations(weight, gram, damping, xp)
    inner = xp.stack([m[c, :][:, c] for m, c in zip(h, columns, strict=True)])
    right = xp.stack([g[:, c] for g, c in zip(goal, columns, strict=True)])
    return _solved(inner, right, xp)


def in_span(weight: Array, gram: Gram, basis: Array, damping: float | None = None) -> Array:
    """U [groups, N, r] of V = U `basis`."""
    xp = array_namespace(weight)
    if damping is None:
        damping = _by_rows(gram, basis.shape[1])
    h, goal = _equations(weight, gram, damping, xp)
    rows = xp.astype(basis, xp.float64)
    return _solved(rows @ h @ rows.swapaxes(1, 2), goal @ rows.swapaxes(1, 2), xp)


def on_positions(
    weight: Array, gram: Gram, mask: Array, start: Array, damping: float | None = None, steps: int = STEPS
) -> Array:
    """V that is zero where `mask` is false, at most so many steps from `start`."""
    xp = array_namespace(weight)
    wide, goal = _equations(weight, gram, damping, xp)
    h = xp.astype(wide, xp.float32)
    scale = 1 / xp.linalg.diagonal(h)[:, None, :]
    keep = xp.astype(mask, xp.float32)
    found = start * keep
    residual = (xp.astype(goal, xp.float32) - found @ h) * keep
    direction = residual * scale
    slope = (residual * direction).sum(axis=2, keepdims=True)
    least = slope * _NEGLIGIBLE
    for _ in range(steps):
        moving = slope > least
        if not bool(xp.any(moving)):
            break
        ahead = (direction @ h) * keep
        curve = (direction * ahead).sum(axis=2, keepdims=True)
        length = xp.where(moving, slope / xp.where(curve > 0, curve, 1), 0)
        found = found + length * direction
        residual = residual - length * ahead
        towards = residual * scale
        before, slope = slope, (residual * towards).sum(axis=2, keepdims=True)
        direction = towards + xp.where(moving, slope / xp.where(before > 0, before, 1), 0) * direction
    return found


_NEGLIGIBLE = 1e-10
"""A row is done when its squared residual has fallen to this share."""


def relative_error(weight: Array, edited: Array, gram: Gram) -> float:
    """||V X - W (X + M)||^2 as a share of ||W (X + M)||^2."""
    xp = array_namespace(weight)
    w, h = xp.astype(weight, xp.float64), xp.astype(gram.matrix, xp.float64)
    lost = w - xp.astype(edited, xp.float64)
    error, whole = float((lost @ h * lost).sum()), float((w @ h * w).sum())
    if gram.drift is not None:
        drift, missed = (xp.astype(m, xp.float64) for m in gram.drift)
        moved, own = w @ drift, float((w @ missed * w).sum())
        error += 2 * float((moved * lost).sum()) + own
        whole += 2 * float((moved * w).sum()) + own
    return max(error, 0.0) / whole if whole > 0 else 0.0


def summary(method: str, errors: Mapping[str, tuple[float, float]]) -> str:
    """What refitting gained: relative errors before and after, by layer."""
    before, after = np.array(list(errors.values())).T
    worst = max(errors, key=lambda name: errors[name][1])
    return (
        f"{method}: refitting {count(len(errors), 'layer')} took the error of their outputs from "
        f"{np.median(before):.2%} to {np.median(after):.2%} (median; most in {worst}: {errors[worst][0]:.2%} to "
        f"{errors[worst][1]:.2%})"
    )


def _equations(weight: Array, gram: Gram, damping: float | None, xp: Any) -> tuple[Array, Array]:
    """H and W (H + D), damped; H [groups, K, K] and the goal [groups, N, K] in float64."""
    h = xp.asarray(xp.astype(gram.matrix, xp.float64), copy=True)
    diagonal = xp.linalg.diagonal(h)
    if damping is None:
        damping = _by_rows(gram, h.shape[1])
    added = damping * xp.mean(diagonal, axis=1) + float(np.finfo(np.float32).tiny)
    h += added[:, None, None] * xp.eye(h.shape[1], dtype=h.dtype, device=_device(h))
    w = xp.astype(weight, xp.float64)
    goal = w @ h
    if gram.drift is not None:
        goal = goal + w @ xp.astype(gram.drift[0], xp.float64)
    return h, goal


def _by_rows(gram: Gram, unknowns: int) -> float:
    return max(DAMPING, unknowns / gram.rows) if gram.rows else DAMPING


def _solved(matrix: Array, right: Array, xp: Any) -> Array:
    """`right` matrix^-1, float32, for a symmetric matrix that damping made regular."""
    return xp.astype(xp.linalg.solve(matrix, right.swapaxes(1, 2)).swapaxes(1, 2), xp.float32)


def _device(array: Array) -> Any:
    from array_api_compat import device

    return device(array)
