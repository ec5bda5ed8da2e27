"""Calibration data in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from qcompile.compiler.context import Sample


class Samples:
    """A SampleSource of given samples, or of arrays for an input called x."""

    description, synthetic = "a test", False

    def __init__(self, *samples: Sample | np.ndarray[Any, Any]) -> None:
        self.samples = [{"x": s} if isinstance(s, np.ndarray) else s for s in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def digest(self) -> str:
        return "x"
