"""What a benchmark found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Point:
    """Inputs of one size.

    Attributes:
        batch: samples in one run.
        sequence: tokens of each sample, those in the cache included; None where there is no such dimension.
        phase: "prefill" reads `sequence` tokens, "decode" one more behind them; empty for a model without a cache.
    """

    sample: Mapping[str, Array]
    batch: int
    sequence: int | None = None
    phase: str = ""

    @property
    def items(self) -> int:
        """What one run gets done: tokens where there are any, otherwise samples."""
        return self.batch * (1 if self.sequence is None or self.phase == "decode" else self.sequence)


@dataclass(frozen=True)
class Row:
    """One model at one point.

    Attributes:
        milliseconds: median of a run.
        spread: distance of the quartiles, relative to that.
        per_second: items of `Benchmark.unit`.
        operations: of one run, by the type of the numbers that are multiplied.
        bytes: that one run reads and writes.
        gflops, gbytes: achieved, in GFLOP/s and GB/s.
        of_products, of_copy: the same as shares of the ceilings, None if not known.
        times_faster: how many times faster than this one the first model is, None for the first; and its spread.
    """

    model: str
    batch: int
    sequence: int | None
    phase: str
    shapes: Mapping[str, list[int]]
    milliseconds: float
    spread: float
    per_second: float
    operations: Mapping[str, float]
    bytes: float
    gflops: float
    gbytes: float
    of_products: float | None
    of_copy: float
    times_faster: float | None = None
    times_faster_spread: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """Models on one provider.

    Attributes:
        why: why this provider.
        device: the processor.
        threads: of each session, 0 for ONNX Runtime's choice.
        cuda_graphs: whether its runs were replayed.
        unit: what `Row.per_second` counts.
        products: ceilings in GFLOP/s by type.
        copy: the ceiling in GB/s.
    """

    provider: str
    why: str
    device: str
    threads: int
    cuda_graphs: bool
    unit: str
    products: Mapping[str, float]
    copy: float
    rows: list[Row] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        """Their names, the first one first."""
        return list(dict.fromkeys(row.model for row in self.rows))

    def data(self) -> dict[str, Any]:
        """All of it for JSON, four digits of each number."""
        return dict(_rounded(asdict(self)))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value
