"""What a model of the zoo offers to tests and benchmarks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Sample = dict[str, Array]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""A model as a function of one sample."""


class ZooModel(ABC):
    """A pretrained model with its data.

    Attributes:
        name: short name, also the file name in the cache.
        title: for tables.
        metric_name: what `metric` measures.
        lower_is_better: of the metric, such as a perplexity.
        allowed_drop: how much of the metric the int8 model may lose on the packaged data.
        allowed_size: how large the int8 file may be, of the float one.
        least_units: how many operations must run in int8 at least.
        calibration_count: samples that the tests calibrate with.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    metric_name: ClassVar[str]
    lower_is_better: ClassVar[bool] = False
    allowed_drop: ClassVar[float]
    allowed_size: ClassVar[float] = 0.33
    least_units: ClassVar[int]
    calibration_count: ClassVar[int] = 64

    @abstractmethod
    def path(self) -> Path:
        """The float ONNX file."""

    @abstractmethod
    def calibration(self, count: int) -> list[Sample]:
        """The first `count` calibration samples, none of which `metric` uses."""

    @abstractmethod
    def metric(self, run: Run) -> float:
        """The task metric of a model."""

    def loss(self, before: float, after: float) -> float:
        """How much worse the metric got; below zero it is a gain."""
        return after - before if self.lower_is_better else before - after

    @property
    @abstractmethod
    def data(self) -> str:
        """What `metric` measures on, for the foot of a table."""

    def details(self, run: Run, reference: Run) -> dict[str, float]:
        """More figures for benchmarks; `reference` is the float model."""
        return {}

    @abstractmethod
    def timing_sample(self) -> Sample:
        """One sample at batch 1, on which latency is measured."""

    def timing_samples(self) -> dict[str, Sample]:
        """All samples on which latency is measured, by what they are; more than one where the use has phases."""
        return {"": self.timing_sample()}


def runner(path: Path, threads: int = 2, entries: Mapping[str, str] | None = None) -> Run:
    """`path` on the CPU provider of stock ONNX Runtime; `entries` are more session options."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for entry, value in (entries or {}).items():
        options.add_session_config_entry(entry, value)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]

    def run(sample: Mapping[str, Array]) -> Mapping[str, Array]:
        return dict(zip(names, session.run(names, dict(sample)), strict=True))

    return run


def stream(*seed: int) -> np.random.Generator:
    """The random numbers of one data set; the same everywhere."""
    return np.random.default_rng(list(seed))
