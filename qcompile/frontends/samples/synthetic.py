"""Made-up samples, for trying things out: the ranges they give are not those of real data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.frontends.samples.check import ModelInput

if TYPE_CHECKING:
    import onnx_ir as ir

_COUNT = 16
_SPATIAL, _LENGTH = 64, 32


@dataclass(frozen=True)
class SyntheticSamples:
    """16 samples: standard normal floats, table indices within their table, other integers 1.

    A free first dimension is 1; other free dimensions are 64 in tensors of rank 4 and more, else 32.

    Attributes:
        rows: for inputs that index a constant table, how many rows it has.
    """

    inputs: Sequence[ModelInput]
    seed: int
    rows: Mapping[str, int] = field(default_factory=dict)
    description: str = f"{_COUNT} synthetic samples"
    synthetic: bool = True

    def __iter__(self) -> Iterator[tuple[str, object]]:
        random = np.random.default_rng(self.seed)
        for number in range(1, _COUNT + 1):
            sizes: dict[str, int] = {}
            sample = {i.name: self._array(i, sizes, random) for i in self.inputs if i.required}
            yield f"synthetic sample {number}", sample

    def _array(self, given: ModelInput, sizes: dict[str, int], random: np.random.Generator) -> np.ndarray[Any, Any]:
        dims = given.shape or ()
        free = [1 if axis == 0 else _SPATIAL if len(dims) >= 4 else _LENGTH for axis in range(len(dims))]
        shape = [
            d if isinstance(d, int) else size if d == "?" else sizes.setdefault(d, size)
            for d, size in zip(dims, free, strict=True)
        ]
        if given.dtype.kind in "iu":
            rows = self.rows.get(given.name)
            codes = random.integers(0, rows, shape) if rows else np.ones(shape)
            return np.asarray(codes, given.dtype)
        if given.dtype.kind == "b":
            return np.ones(shape, bool)
        return np.asarray(random.standard_normal(shape), given.dtype)


def table_rows(model: ir.Model) -> dict[str, int]:
    """Inputs that a Gather uses as row numbers of a constant table, with the table's number of rows."""
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        for node, position in value.uses():
            table = node.inputs[0] if node.inputs else None
            if node.op_type == "Gather" and position == 1 and table is not None and table.const_value is not None:
                axis = node.attributes.get_int("axis", 0)
                size = table.const_value.shape[axis]
                if isinstance(size, int) and value.name:
                    found[value.name] = min(size, found.get(value.name, size))
    return found
