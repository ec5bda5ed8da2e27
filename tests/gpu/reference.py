"""What the operators mean, in float64, and how far a float32 kernel may be from it."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]

FLOATS = {"f32": ir.DataType.FLOAT, "f16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
"""The float types, by a short name for the ids of tests."""

_erf = np.vectorize(math.erf, otypes=[np.float64])


def activate(y: Array, activation: str) -> Array:
    """Relu, Gelu (exact), Silu, or nothing."""
    if activation == "Relu":
        return np.maximum(y, 0)
    if activation == "Gelu":
        return np.asarray(y * (1 + _erf(y / math.sqrt(2))) / 2)
    if activation == "Silu":
        return np.asarray(y / (1 + np.exp(-y)))
    return y


def epsilon(dtype: ir.DataType) -> float:
    """The relative error of one rounding to `dtype`."""
    return float(ml_dtypes.finfo(dtype.numpy()).eps) / 2


def smallest(dtype: ir.DataType) -> float:
    """Half the step of `dtype` about zero: the absolute error of rounding a subnormal number."""
    return float(ml_dtypes.finfo(dtype.numpy()).smallest_subnormal) / 2


def sum_bound(terms: Array, depth: int) -> Array:
    """How far a float32 sum of `depth` products may be from the exact one, in whatever order it is taken.

    Args:
        terms: the same sum of magnitudes.
    """
    return np.asarray(terms * (depth + 8) * 2.0**-24)


def assert_within(found: Array, expected: Array, bound: Array | float) -> None:
    """Every element of `found` is `expected` to within `bound`; says the worst one otherwise."""
    assert found.shape == expected.shape
    error = np.abs(found.astype(np.float64) - expected)
    excess = np.where(np.isnan(error), np.inf, error - bound)
    worst = np.unravel_index(int(np.argmax(excess)), excess.shape) if excess.size else ()
    assert excess.size == 0 or excess[worst] <= 0, (
        f"at {tuple(map(int, worst))}: {found[worst]} for {expected[worst]:.9g}, "
        f"{np.broadcast_to(bound, excess.shape)[worst]:.3g} allowed; {np.mean(excess > 0):.2%} of all are off"
    )


def assert_codes(found: Array, ratio: Array, low: int, high: int, slack: Array | float) -> None:
    """Codes are `ratio` rounded, half to even and saturated; within `slack` of a tie either neighbour will do."""
    clipped = np.clip(ratio, low, high)
    assert_within(found, clipped, 0.5 + np.asarray(slack))


def normal(rng: np.random.Generator, *shape: int) -> Array:
    """Activations: normal, one column 20 times the others, one row of zeros when there are several."""
    x = rng.standard_normal(shape).astype(np.float32)
    x[..., shape[-1] // 2] *= 20
    if x.ndim > 1 and x.shape[0] > 2:
        x[1] = 0
    return x


def two_of_four(rng: np.random.Generator, w: Array) -> Array:
    """`w` with at most two of four neighbours along the last axis kept, which two is drawn; some groups keep one."""
    kept = rng.random((*w.shape[:-1], w.shape[-1] // 4, 4)).argsort(-1) < 2
    kept[..., 0, 0] = False
    return np.where(kept.reshape(w.shape), w, np.zeros((), w.dtype))


def linear(
    x: Array,
    w: Array,
    dtype: ir.DataType,
    *,
    x_scale: Array | None = None,
    w_scale: Array | None = None,
    bias: Array | None = None,
    activation: str = "",
    slack: float = 0,
) -> tuple[Array, Array]:
    """act(x w^T * x_scale * w_scale + bias), and how far a result of type `dtype` may be from it.

    Args:
        slack: relative error that the kernel may make before the activation, beside that of float32.
    """
    x, w = x.astype(np.float64), w.astype(np.float64)
    scale = np.ones(()) if w_scale is None else w_scale.astype(np.float64)
    scale = scale if x_scale is None else x_scale.astype(np.float64) * scale
    added = np.zeros(()) if bias is None else bias.astype(np.float64)
    before = x @ w.T * scale + added
    terms = np.abs(x) @ np.abs(w).T * scale + np.abs(added)
    bound = sum_bound(terms, x.shape[-1]) + slack * (np.abs(before) + np.abs(added))
    y = activate(before, activation)
    # No slope of the activations exceeds 1.13.
    bound = 1.13 * bound + 4e-7 * np.abs(before) + epsilon(dtype) * np.abs(y) + smallest(dtype)
    return y, bound
