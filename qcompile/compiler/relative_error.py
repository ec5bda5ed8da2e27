"""How far a quantized block is from the float one, as one number that every row has an equal say in.

    E = mean over rows r of ||y_r - y~_r||^2 / max(||y_r||^2, floor)

A row is one token's vector (last axis), or one whole image of rank 4 and more. Summed over the tensor
instead, the few tokens with massive activations that transformers have would hide the error of all others.
The floor, a thousandth of the mean row, keeps rows that are all but zero from deciding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or torch.Tensor

_FLOOR = 1e-3


def relative_error(
    exact: Iterable[Mapping[str, Array]], given: Iterable[Mapping[str, Array]], names: Collection[str]
) -> float:
    """The error of the values `names`, meaned over values, samples and rows; infinite where one is not finite.

    Args:
        exact, given: value name -> array, one mapping for each sample.
        names: floating-point values to compare; empty tensors count nothing.
    """
    errors = [
        found
        for y, z in zip(exact, given, strict=True)
        for name in names
        if (found := _error(y[name], z[name])) is not None
    ]
    return float(np.mean(errors)) if errors else 0.0


def _error(exact: Array, given: Array) -> float | None:
    from array_api_compat import array_namespace

    xp = array_namespace(exact)
    y, z = _rows(exact, xp), _rows(given, xp)
    usable = xp.all(xp.isfinite(y), axis=1)  # a masked score of -inf is not a signal
    y, z = y[usable], z[usable]
    if 0 in y.shape:
        return None
    if y.shape != z.shape or not xp.all(xp.isfinite(z)):
        return float("inf")
    energy = xp.square(y).sum(axis=1)
    floor = _FLOOR * float(energy.mean())
    if floor == 0:
        return 0.0 if not xp.any(z != 0) else float("inf")
    return float((xp.square(y - z).sum(axis=1) / xp.clip(energy, floor, None)).mean())


def _rows(array: Array, xp: Any) -> Array:
    """[rows, elements]: by the last axis, by the first from rank 4 on."""
    values = xp.astype(array, xp.float64)
    if 0 in values.shape:
        return values.reshape((0, 0))
    return (
        values.reshape((values.shape[0], -1))
        if values.ndim >= 4
        else values.reshape((-1, values.shape[-1] if values.ndim else 1))
    )
