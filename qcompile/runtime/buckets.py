"""Buckets: the few shapes that stand for all that a model is fed.

A CUDA graph is captured for one shape, while texts have any length and batches any number of rows. Sizes of free
dimensions are rounded up to powers of two and to what lies half-way between them,

    1  2  3  4  6  8  12  16  24  32  48  64  96  128 ...

so that a padded dimension is at most a third padding. Which dimensions may be padded at all is found by `padding`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from qcompile.errors import UsageError

Shape = tuple[int, ...]
Sizes = Mapping[str, int]
"""Dimension -> size."""


def rounded_up(size: int) -> int:
    """The smallest 2^k or 3 * 2^k that is not less than `size`."""
    power = 1 << (size - 1).bit_length() if size > 1 else size
    between = power // 4 * 3
    return between if size <= between else power


def is_mask(name: str) -> bool:
    """Whether an input of this name says which positions count, 1 for those that do."""
    return "mask" in name


@dataclass(frozen=True)
class FreeDimensions:
    """The free dimensions of a model's inputs. Those of one name have one size, as exporters mean it.

    Attributes:
        places: dimension -> the inputs and axes where it stands; a dimension without a name is called "input:axis".
        ranks: input -> number of its axes.
        batch: the first dimension of all inputs, None where they have no such.
        masked: dimensions of an input called a mask, in which it says which positions count.
    """

    places: Mapping[str, tuple[tuple[str, int], ...]]
    ranks: Mapping[str, int]
    batch: str | None
    masked: frozenset[str]

    @classmethod
    def of(cls, inputs: Mapping[str, Sequence[int | str | None]]) -> FreeDimensions:
        """Those of inputs whose shapes are given as ONNX Runtime reports them: a size, a name or None."""
        places: dict[str, list[tuple[str, int]]] = {}
        for name, shape in inputs.items():
            for axis, size in enumerate(shape):
                if not isinstance(size, int):
                    places.setdefault(size or f"{name}:{axis}", []).append((name, axis))
        first = [dimension for dimension, where in places.items() if set(where) == {(name, 0) for name in inputs}]
        batch = first[0] if first else None
        masked = {d for d, where in places.items() if d != batch and any(is_mask(name) for name, _ in where)}
        ranks = {name: len(shape) for name, shape in inputs.items()}
        return cls({d: tuple(where) for d, where in places.items()}, ranks, batch, frozenset(masked))

    @property
    def candidates(self) -> list[str]:
        """Dimensions that a model may be indifferent to: its rows, and positions that a mask can rule out."""
        return [d for d in self.places if d == self.batch or d in self.masked]

    def sizes(self, shapes: Mapping[str, Shape]) -> dict[str, int] | None:
        """How large each dimension is in a feed; None where the feed contradicts the names."""
        found = {d: {shapes[name][axis] for name, axis in where} for d, where in self.places.items()}
        return {d: sizes.pop() for d, sizes in found.items()} if all(len(s) == 1 for s in found.values()) else None

    def resized(self, shapes: Mapping[str, Shape], sizes: Sizes) -> dict[str, Shape]:
        """The shapes of a feed with its dimensions as in `sizes`."""
        wanted = {place: sizes[d] for d, where in self.places.items() for place in where}
        return {
            name: tuple(wanted.get((name, axis), size) for axis, size in enumerate(shape))
            for name, shape in shapes.items()
        }


@dataclass(frozen=True)
class Buckets:
    """What a feed is rounded up to.

    Args:
        given: the only buckets there are, each with a size for every free dimension; None for steps without end.

    Raises:
        UsageError: a given bucket lacks a dimension, names one that the model has not, or has a size below 1.
    """

    dimensions: FreeDimensions
    given: tuple[Sizes, ...] | None = None

    def __post_init__(self) -> None:
        known = self.dimensions.places
        for bucket in self.given or ():
            if bucket.keys() != known.keys() or min(bucket.values(), default=1) < 1:
                raise UsageError(
                    f"{dict(bucket)} is no bucket of the model",
                    hint=f"give a size from 1 for each of its free dimensions: {', '.join(known) or 'it has none'}",
                )

    def of(self, sizes: Sizes, padded: Collection[str]) -> dict[str, int] | None:
        """The bucket of a feed; None where no bucket takes it.

        Args:
            padded: the dimensions that may be padded; others have to fit.
        """
        if 0 in sizes.values():
            return None
        if self.given is None:
            return {d: rounded_up(size) if d in padded else size for d, size in sizes.items()}
        fitting = [b for b in self.given if all(_fits(size, b[d], d in padded) for d, size in sizes.items())]
        smallest = min(fitting, key=lambda bucket: math.prod(bucket.values()), default=None)
        return None if smallest is None else dict(smallest)


def text(sizes: Sizes) -> str:
    """A bucket for people: "batch 8, sequence 128"."""
    return ", ".join(f"{dimension} {size}" for dimension, size in sizes.items()) or "the one shape there is"


def _fits(size: int, room: int, may_be_padded: bool) -> bool:
    return size <= room if may_be_padded else size == room
