"""What calibration remembers of a tensor, as a mergeable monoid on fixed-size vectors.

A statistic maps a tensor to a vector of constant length, and two vectors merge into one, so that
    observe(a ++ b) = merge(observe(a), observe(b)),   merge(identity, v) = v.
Memory is therefore constant in the number of samples, shards of one data set may be merged, and a
run can be resumed from a checkpoint. Each component names the ONNX operator that observes it and
the one that merges it, so both can run inside the graph, on the device where the tensor lies.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qcompile.compiler.specs import QuantSpec

Vector = npt.NDArray[np.float64]

_MERGE = {"Min": np.minimum, "Max": np.maximum, "Add": np.add}


@dataclass(frozen=True)
class Component:
    """One number of a statistic, or one number for each channel.

    Attributes:
        observe: ONNX operator that reduces the tensor; Size counts all its elements, channels or not.
        merge: ONNX operator that merges two of them (Min, Max or Add).
        identity: the number that merges without effect.
    """

    name: str
    observe: str
    merge: str
    identity: float

    def width(self, channels: int) -> int:
        return 1 if self.observe == "Size" else channels


@dataclass(frozen=True)
class Statistic:
    """A named tuple of components; a vector is float64, one component after the other.

    Attributes:
        axes: none for the whole tensor, else those whose indices (channels) are observed apart.
    """

    kind: str
    components: tuple[Component, ...]
    axes: tuple[int, ...] = ()

    def channels(self, length: int) -> int:
        """How many channels a vector of `length` numbers is of."""
        scalars = sum(c.observe == "Size" for c in self.components)
        return (length - scalars) // (len(self.components) - scalars)

    def lift(self, observed: Vector) -> Vector:
        """The vectors of what the components said of one sample, [tensors, numbers]."""
        return observed

    def identity(self, channels: int = 1) -> Vector:
        return np.concatenate([np.full(c.width(channels), c.identity) for c in self.components])

    def merge(self, a: Vector, b: Vector) -> Vector:
        """Merge two arrays of vectors, shape [..., length] each."""
        parts = zip(self.components, self.split(a), self.split(b), strict=True)
        return np.concatenate([_MERGE[c.merge](x, y) for c, x, y in parts], axis=-1)

    def component(self, name: str, vectors: Vector) -> Vector:
        """One component of an array of vectors."""
        return self.split(vectors)[[c.name for c in self.components].index(name)]

    def split(self, vectors: Vector) -> list[Vector]:
        """The components of an array of vectors, shape [..., 1] or [..., channels] each."""
        channels = self.channels(vectors.shape[-1])
        ends = np.cumsum([c.width(channels) for c in self.components])
        return np.split(vectors, ends[:-1], axis=-1)


_BOUNDS = Component("min", "ReduceMin", "Min", np.inf), Component("max", "ReduceMax", "Max", -np.inf)
_MAGNITUDE = Component("magnitude", "ReduceL1", "Add", 0.0)
_COUNT = Component("count", "Size", "Add", 0.0)

RANGE = Statistic("range", (*_BOUNDS, _MAGNITUDE, _COUNT))
"""Minimum, maximum, sum of magnitudes and number of elements: what min-max calibration needs, and
with the mean magnitude the means to tell whether a uniform grid resolves the bulk of the values."""


class Channels(Statistic):
    """Minimum, maximum, sum and sum of magnitudes of each channel, and the number of elements.

    Args:
        axes: the channels' axis, or several: heads and their columns. They are counted from the end where negative,
            and their sizes must be known.
    """

    def __init__(self, *axes: int) -> None:
        components = (*_BOUNDS, Component("sum", "ReduceSum", "Add", 0.0), _MAGNITUDE, _COUNT)
        super().__init__(f"channels {' '.join(map(str, axes))}", components, axes)


@dataclass(frozen=True)
class TensorRange:
    """The RANGE statistic of one tensor in words.

    Attributes:
        low, high: smallest and largest value seen.
        mean_magnitude: mean of |x|.
        elements: number of elements in one sample, on average.
    """

    low: float
    high: float
    mean_magnitude: float
    elements: float


@dataclass(frozen=True, eq=False)
class ChannelRanges:
    """The Channels statistic of one tensor in words; arrays of shape [channels].

    Attributes:
        low, high: smallest and largest value of each channel.
        mean, mean_magnitude: mean of x and of |x|.
        count: elements of one channel, over all samples.
    """

    low: Vector
    high: Vector
    mean: Vector
    mean_magnitude: Vector
    count: float


@dataclass(frozen=True)
class Clip:
    """The part of a tensor's range that its codes shall cover, and the method that chose it."""

    low: float
    high: float
    method: str


class Calibrator(Protocol):
    """A way to choose clips.

    Attributes:
        name: of the method.
        statistics: what it needs to know of a tensor besides its RANGE.
    """

    @property
    def name(self) -> str: ...

    @property
    def statistics(self) -> tuple[Statistic, ...]: ...

    def clip(self, table: StatisticsTable, tensor: str, spec: QuantSpec) -> Clip:
        """The clip of a tensor whose range is known and finite."""
        ...


@dataclass
class StatisticsTable:
    """All statistics of one calibration run: tensor name -> vector, for each kind.

    Attributes:
        samples: how many samples were merged.
        vectors: {kind: {tensor: vector}}.
        calibrator: chooses the clips; None takes the range as it is.
    """

    samples: int = 0
    vectors: dict[str, dict[str, Vector]] = field(default_factory=dict)
    calibrator: Calibrator | None = None
    _clips: dict[tuple[str, QuantSpec], Clip] = field(default_factory=dict, repr=False, compare=False)

    def vector_of(self, statistic: Statistic, name: str) -> Vector | None:
        """One vector of one tensor, None where it was not observed."""
        return self.vectors.get(statistic.kind, {}).get(name)

    def range_of(self, name: str) -> TensorRange | None:
        """The range of tensor `name`, or None where it was not observed (a branch never taken)."""
        vector = self.vector_of(RANGE, name)
        if vector is None or vector[3] == 0:
            return None
        low, high, magnitude, count = (float(v) for v in vector)
        return TensorRange(low, high, magnitude / count, count / max(self.samples, 1))

    def clip_of(self, name: str, spec: QuantSpec) -> Clip | None:
        """What the codes of tensor `name` shall cover, never more than its range; None where it was not observed."""
        seen = self.range_of(name)
        if seen is None:
            return None
        if self.calibrator is None or not np.isfinite([seen.low, seen.high]).all():
            return Clip(seen.low, seen.high, "min-max")
        if (name, spec) not in self._clips:
            self._clips[name, spec] = self.clip_by(self.calibrator, name, spec)
        return self._clips[name, spec]

    def clip_by(self, calibrator: Calibrator, name: str, spec: QuantSpec) -> Clip:
        """The clip of a tensor whose range is known and finite, by `calibrator`, never more than the range."""
        seen, chosen = self.range_of(name), calibrator.clip(self, name, spec)
        assert seen is not None
        return Clip(max(chosen.low, seen.low), min(chosen.high, seen.high), chosen.method)

    def channels_of(self, name: str, *axes: int) -> ChannelRanges | None:
        """What Channels(*axes) saw of tensor `name`, or None where it was not observed."""
        statistic = Channels(*axes)
        vector = self.vector_of(statistic, name)
        if vector is None or vector[-1] == 0:
            return None
        low, high, total, magnitude, elements = statistic.split(vector)
        count = float(elements[0]) / low.size
        return ChannelRanges(low, high, total / count, magnitude / count, count)

    def without(self, names: Collection[str]) -> StatisticsTable:
        """A copy that knows nothing of the tensors `names`."""
        vectors = {kind: {n: v for n, v in known.items() if n not in names} for kind, known in self.vectors.items()}
        clips = {key: clip for key, clip in self._clips.items() if key[0] not in names}
        return StatisticsTable(self.samples, vectors, self.calibrator, clips)

    def update(self, kind: str, vectors: Mapping[str, Vector]) -> None:
        self.vectors.setdefault(kind, {}).update(vectors)
