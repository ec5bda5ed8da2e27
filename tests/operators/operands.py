"""Random operands for any operator, of values that exercise it: results near 1, codes over their whole range."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from qcompile.compiler.operators import Operator
from qcompile.compiler.operators.definition import Operand

Array = np.ndarray[Any, Any]
CONSTANTS = frozenset({"w", "w_scale", "w_zero", "bias", "gamma", "beta", "y_scale", "keep", "columns", "w_columns"})
"""Operands that are initializers in a compiled model."""


def attributes_of(operator: Operator, block: int = 32, epsilon: float = 1e-5) -> dict[str, int | float]:
    """The attributes of a node of `operator`."""
    values: dict[str, int | float] = {"block_size": block, "epsilon": epsilon}
    return {a.name: values[a.name] for a in operator.attributes}


def operands(
    operator: Operator,
    leading: tuple[int, ...],
    n: int,
    k: int,
    *,
    block: int = 32,
    static: bool = False,
    seed: int = 0,
) -> dict[str, Array]:
    """Every input of `operator` by name; with `static` the activations have one scale."""
    rng = np.random.default_rng([seed, *leading, n, k])
    sizes = {"...": leading, "N": (n,), "K": (k,), "K/B": (k // block,), "1": (1,), "C": (min(k, 3),)}
    found = {}
    for operand in operator.inputs:
        shape = tuple(d for letter in operand.shape for d in sizes[letter])
        found[operand.name] = _values(operand, (1,) if static and operand.or_one else shape, k, rng)
    if operator.name.startswith("Linear24"):
        found["w"] = pruned(found["w"])
    if "columns" in found:
        found["columns"] = np.sort(rng.permutation(k)[: sizes["C"][0]]).astype(np.int64)
        found["keep"] = np.where(np.isin(np.arange(k), found["columns"]), np.float32(0), np.float32(1))
        found["x"] = (found["x"] * (1 + 50 * (1 - found["keep"]))).astype(found["x"].dtype)
    return found


def pruned(w: Array) -> Array:
    """`w` with the two smaller of every four values along K set to 0."""
    n, k = w.shape
    groups = np.abs(w.astype(np.float32)).reshape(n, -1, 4)
    rank = np.argsort(np.argsort(groups, axis=-1, kind="stable"), axis=-1, kind="stable")
    return np.where(rank.reshape(n, k) >= 2, w, np.zeros_like(w))


def _values(operand: Operand, shape: tuple[int, ...], k: int, rng: np.random.Generator) -> Array:
    dtype = np.dtype(operand.dtype.numpy())
    normal = rng.standard_normal(shape)
    if dtype in (ml_dtypes.int4, ml_dtypes.uint4):
        info = ml_dtypes.iinfo(dtype)
        return rng.integers(info.min, info.max + 1, shape, np.int8).astype(dtype)
    if dtype == np.int8:
        return rng.integers(-127, 128, shape, np.int8)
    if dtype == ml_dtypes.float8_e4m3fn:
        return np.clip(normal * 73, -448, 448).astype(dtype)
    around_one = rng.uniform(0.5, 1.5, shape)
    values = {
        "x_scale": around_one / 73,
        "w_scale": around_one / (73 if dtype == np.float32 else 4) / np.sqrt(k),
        "w": normal / np.sqrt(k),
        "y_scale": np.full(shape, 0.02),
        "gamma": around_one,
    }
    return values.get(operand.name, normal).astype(dtype)
