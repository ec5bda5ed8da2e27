"""Calibrators: how much of a tensor's observed range its codes shall cover. One method in one file."""

from __future__ import annotations

from qcompile.compiler.statistics import Calibrator
from qcompile.passes.analyze.calibrators.auto import Auto
from qcompile.passes.analyze.calibrators.entropy import Entropy
from qcompile.passes.analyze.calibrators.min_max import MinMax
from qcompile.passes.analyze.calibrators.moving_average import MovingAverage
from qcompile.passes.analyze.calibrators.mse import MeanSquaredError
from qcompile.passes.analyze.calibrators.percentile import Percentile


def calibrator(method: str, percentile: float) -> Calibrator:
    """The calibrator called `method`."""
    alone: list[Calibrator] = [MinMax(), MovingAverage(), Percentile(percentile), Entropy(), MeanSquaredError()]
    known: dict[str, Calibrator] = {c.name: c for c in (*alone, Auto(tuple(alone)))}
    return known[method]
