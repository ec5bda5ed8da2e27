"""The user's own measure of quality, on the float model and on the compiled one."""

from __future__ import annotations

import math

from qcompile.compiler.context import Metric
from qcompile.compiler.report import Proof
from qcompile.compiler.verification.noise import Runner
from qcompile.errors import DataError

_LARGEST_LOSS = 0.05
"""Share of the float model's value; a compiled model that loses more is not the same model."""


def prove_metric(metric: Metric, before: float, compiled: Runner) -> tuple[float, Proof]:
    """Measure the compiled model and hold it against `before`, the measure of the float model.

    Raises:
        DataError: as `measure`.
    """
    after = measure(metric, compiled, "compiled")
    loss = before - after
    passed = loss <= _LARGEST_LOSS * abs(before)
    detail = f"{before:.5g} for the float model, {after:.5g} compiled"
    if not passed:
        detail += f": more than {_LARGEST_LOSS:.0%} lost"
    return after, Proof(name="metric", passed=passed, detail=detail)


def measure(metric: Metric, run: Runner, which: str) -> float:
    """What `metric` says of one model.

    Raises:
        DataError: the metric failed, or returned something that is not a finite number.
    """
    try:
        value = float(metric(run))
    except Exception as error:
        raise DataError(
            f"the metric failed on the {which} model: {type(error).__name__}: {error}",
            hint="a metric gets a function from sample to outputs and returns a number, higher is better",
        ) from error
    if not math.isfinite(value):
        raise DataError(f"the metric of the {which} model is {value}", hint="return a finite number")
    return value
