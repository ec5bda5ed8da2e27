"""Does a sample fit the model? Every fault names the input and the sample it was found in."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qcompile.compiler.context import Sample
from qcompile.compiler.inputs import ModelInput
from qcompile.errors import DataError


def as_sample(raw: object, where: str) -> dict[str, np.ndarray[Any, Any]]:
    """A mapping of arrays as numpy arrays (torch tensors and lists of numbers are converted)."""
    if not isinstance(raw, Mapping):
        raise DataError(f"a sample must be a dict of input name -> array, not {type(raw).__name__}", where=where)
    return {str(name): np.asarray(value) for name, value in raw.items()}


def check_sample(sample: Sample, inputs: Sequence[ModelInput], where: str) -> None:
    """Check names, element types, shapes and finiteness.

    Args:
        where: the file, or the number of the sample.

    Raises:
        DataError: the first fault found.
    """
    known = {i.name: i for i in inputs}
    for name in sample:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise DataError(
                f"the model has no input '{name}'" + (f"; did you mean '{close[0]}'?" if close else ""),
                where=where,
                hint="its inputs are " + "; ".join(str(i) for i in inputs),
            )
    symbols: dict[str, tuple[int, str]] = {}
    for expected in inputs:
        if expected.name in sample:
            _check_array(sample, expected, symbols, where)
        elif expected.required:
            raise DataError(
                f"input '{expected.name}' is missing",
                where=where,
                hint=f"the sample has {', '.join(sample) or 'no arrays'}; the model wants {expected}",
            )


def _check_array(sample: Sample, expected: ModelInput, symbols: dict[str, tuple[int, str]], where: str) -> None:
    """One input. It may be empty (a cache before the first token) where others are not, but for its batch."""
    name, array = expected.name, sample[expected.name]
    shape = list(array.shape)
    if array.dtype != expected.dtype:
        raise DataError(
            f"input '{name}' is {array.dtype}, the model wants {expected.dtype}",
            where=where,
            hint=f"save it as array.astype('{expected.dtype}')",
        )
    if expected.shape is not None:
        if len(shape) != len(expected.shape):
            raise DataError(
                f"input '{name}' has {len(shape)} dimensions {shape}, the model wants {expected}",
                where=where,
                hint="add the batch dimension with array[None]" if len(shape) + 1 == len(expected.shape) else "",
            )
        for axis, (size, dim) in enumerate(zip(shape, expected.shape, strict=True)):
            if isinstance(dim, int) and size != dim:
                stacked = axis == 0 and dim == 1
                raise DataError(
                    f"input '{name}' has shape {shape}, the model wants {expected}: dimension {axis} must be {dim}",
                    where=where,
                    hint="one file is one sample: save stacked samples one by one" if stacked else "",
                )
            if isinstance(dim, str) and dim != "?":
                first, other = symbols.setdefault(dim, (size, name))
                if first != size:
                    raise DataError(
                        f"dimension '{dim}' is {first} in input '{other}' but {size} in input '{name}'", where=where
                    )
    if array.size == 0 and (shape[0] == 0 or all(a.size == 0 for a in sample.values())):
        raise DataError(f"input '{name}' is empty: shape {shape}", where=where, hint="leave this sample out")
    if array.dtype.kind in "fcV" and not np.isfinite(array).all():
        kind = "NaN" if np.isnan(array).any() else "infinity"
        raise DataError(f"input '{name}' holds {kind}", where=where, hint="leave this sample out or repair it")
