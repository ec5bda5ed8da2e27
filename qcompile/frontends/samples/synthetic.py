"""Made-up samples, for trying things out: the ranges they give are not those of real data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qcompile.compiler.inputs import ModelInput, made_up

_COUNT = 16


@dataclass(frozen=True)
class SyntheticSamples:
    """16 samples: standard normal floats, table indices within their table, other integers 1.

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
            yield f"synthetic sample {number}", made_up(self.inputs, random, self.rows)
