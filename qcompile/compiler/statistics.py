"""What calibration remembers of a tensor, as a mergeable monoid on fixed-size vectors.

A statistic maps a tensor to a vector of constant length, and two vectors merge into one, so that
    observe(a ++ b) = merge(observe(a), observe(b)),   merge(identity, v) = v.
Memory is therefore constant in the number of samples, shards of one data set may be merged, and a
run can be resumed from a checkpoint. Each component names the ONNX operator that observes it and
the one that merges it, so both can run inside the graph, on the device where the tensor lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

_MERGE = {"Min": np.minimum, "Max": np.maximum, "Add": np.add}


@dataclass(frozen=True)
class Component:
    """One number of a statistic.

    Attributes:
        observe: ONNX operator that reduces a tensor to a scalar.
        merge: ONNX operator that merges two scalars (Min, Max or Add).
        identity: the scalar that merges without effect.
    """

    name: str
    observe: str
    merge: str
    identity: float


@dataclass(frozen=True)
class Statistic:
    """A named tuple of components; its vectors are float64 arrays of shape [..., len(components)]."""

    kind: str
    components: tuple[Component, ...]

    @property
    def identity(self) -> Vector:
        return np.array([c.identity for c in self.components])

    def merge(self, a: Vector, b: Vector) -> Vector:
        """Merge two arrays of vectors, shape [..., C] each."""
        return np.stack([_MERGE[c.merge](a[..., i], b[..., i]) for i, c in enumerate(self.components)], axis=-1)


RANGE = Statistic(
    "range",
    (
        Component("min", "ReduceMin", "Min", np.inf),
        Component("max", "ReduceMax", "Max", -np.inf),
        Component("magnitude", "ReduceL1", "Add", 0.0),
        Component("count", "Size", "Add", 0.0),
    ),
)
"""Minimum, maximum, sum of magnitudes and number of elements: what min-max calibration needs, and
with the mean magnitude the means to tell whether a uniform grid resolves the bulk of the values."""


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


@dataclass
class StatisticsTable:
    """All statistics of one calibration run: tensor name -> vector, for each kind.

    Attributes:
        samples: how many samples were merged.
        vectors: {kind: {tensor: vector}}.
    """

    samples: int = 0
    vectors: dict[str, dict[str, Vector]] = field(default_factory=dict)

    def range_of(self, name: str) -> TensorRange | None:
        """The range of tensor `name`, or None where it was not observed (a branch never taken)."""
        vector = self.vectors.get(RANGE.kind, {}).get(name)
        if vector is None or vector[3] == 0:
            return None
        low, high, magnitude, count = (float(v) for v in vector)
        return TensorRange(low, high, magnitude / count, count / max(self.samples, 1))

    def update(self, kind: str, vectors: Mapping[str, Vector]) -> None:
        self.vectors.setdefault(kind, {}).update(vectors)
