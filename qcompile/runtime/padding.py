"""Which dimensions of a model may be padded: shown by running it, never guessed.

A dimension may be padded where the first m positions of every answer stay what they were. Two things are looked at, on
the first m = 3/4 n positions x of a feed of the user's own, padded to the n that it had: a size that is known to run.

    y(x padded with zeros)[:m]  =  y(x padded with values)[:m]   bit for bit: what stands in the padding has no say, so
                                                                 positions do not mix, or a mask rules it out
    y(x padded with zeros)[:m]  ~  y(x)                          to 1/64 of its length: nor has the number of positions
                                                                 (a mean would change by a quarter)

Values are those of x in reverse, so that whole numbers are legal ones, and real ones larger and of the other sign, so
that they would set a range found over all rows.

The same shape runs by the same kernels, hence bit for bit; another shape may choose others, hence the tolerance, which
lets codes of a quantized model tip. A mask is padded with zeros both times, for it is what says which positions count.
Outputs are cut along the axes that had m positions and then had n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qcompile.runtime.buckets import FreeDimensions, Shape, is_mask

Array = np.ndarray[Any, Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]

_TOLERANCE = 1 / 64


@dataclass(frozen=True)
class Verdict:
    """Whether a dimension may be padded.

    Attributes:
        outputs: the outputs and axes to cut back; None where it may not be padded.
        why: why not.
    """

    outputs: tuple[tuple[str, int], ...] | None
    why: str = ""


def judge(run: Run, feed: Mapping[str, Array], dimensions: FreeDimensions, dimension: str) -> Verdict:
    """Whether `dimension` may be padded, as far as `feed` tells.

    Args:
        run: the model, on arrays of numpy.
        feed: inputs in which the dimension has two positions or more.
    """
    shapes = {name: array.shape for name, array in feed.items()}
    sizes = dimensions.sizes(shapes)
    assert sizes is not None, "the feed agrees with the names of the dimensions"
    whole = sizes[dimension]
    size = whole * 3 // 4
    part = {
        name: feed[name][tuple(slice(n) for n in shape)]
        for name, shape in dimensions.resized(shapes, sizes | {dimension: size}).items()
    }
    zeros = {name: padded(array, shapes[name]) for name, array in part.items()}
    values = {name: _padded_with_values(array, shapes[name]) for name, array in part.items()}
    if dimension in dimensions.masked:
        values |= {name: zeros[name] for name in feed if is_mask(name)}
    try:
        plain, first, second = run(part), run(zeros), run(values)
    except Exception as error:
        return Verdict(None, f"{size} of {whole} do not run: {str(error).splitlines()[0]}")
    grown = [(name, axis) for name, y in plain.items() for axis in _grown(y.shape, first[name].shape)]
    if any((plain[name].shape[axis], first[name].shape[axis]) != (size, whole) for name, axis in grown):
        return Verdict(None, "an output has a size that follows from it in another way")
    for name, answer in plain.items():
        cut = tuple(slice(n) for n in answer.shape)
        if not np.array_equal(first[name][cut], second[name][cut], equal_nan=answer.dtype.kind == "f"):
            return Verdict(None, f"what stands in the padding changes '{name}'")
        if not close(first[name][cut], answer):
            return Verdict(None, f"the number of positions changes '{name}'")
    return Verdict(tuple(grown))


def padded(array: Array, shape: Shape) -> Array:
    """`array` in the corner of a larger one of zeros."""
    if array.shape == shape:
        return array
    return np.pad(array, _behind(array, shape))


def close(found: Array, right: Array) -> bool:
    """Whether the difference of two answers is short beside the answer; whole numbers have to be the same."""
    if right.dtype.kind != "f":
        return np.array_equal(found, right)
    if not np.array_equal(np.isfinite(found), np.isfinite(right)):
        return False
    finite = np.isfinite(right)
    difference = found[finite].astype(np.float64) - right[finite]
    return bool(np.linalg.norm(difference) <= _TOLERANCE * np.linalg.norm(right[finite].astype(np.float64)))


def _padded_with_values(array: Array, shape: Shape) -> Array:
    other = np.flip(array) * array.dtype.type(-2) if array.dtype.kind == "f" else np.flip(array)
    found = np.pad(other, _behind(array, shape), "wrap")
    found[tuple(slice(size) for size in array.shape)] = array
    return found


def _behind(array: Array, shape: Shape) -> list[tuple[int, int]]:
    return [(0, more - size) for size, more in zip(array.shape, shape, strict=True)]


def _grown(before: Shape, after: Shape) -> list[int]:
    return [axis for axis, (n, more) in enumerate(zip(before, after, strict=True)) if n != more]
