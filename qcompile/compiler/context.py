"""What a compilation carries from pass to pass: target, data, statistics, plan, notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from qcompile.compiler.moments import Moments
from qcompile.compiler.plan import QuantPlan
from qcompile.compiler.statistics import StatisticsTable
from qcompile.runtime.device import Device
from qcompile.runtime.providers import CUDA

if TYPE_CHECKING:
    import onnx_ir as ir

    from qcompile.compiler.calibration_table import CalibrationTable
    from qcompile.compiler.codes import Codes
    from qcompile.compiler.passes import Pass, StatisticRequest
    from qcompile.compiler.placement import Measured
    from qcompile.compiler.report import Report
    from qcompile.compiler.targets.table import Target

Sample = Mapping[str, np.ndarray[Any, Any]]
"""One set of model inputs: input name -> array."""


class SampleSource(Protocol):
    """Calibration data: can be walked more than once, in the same order.

    Attributes:
        description: for the report ("folder of 64 .npz files").
        synthetic: the samples were made up; the report says so loudly.
    """

    @property
    def description(self) -> str: ...

    @property
    def synthetic(self) -> bool: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sample]: ...

    def digest(self) -> str:
        """A hash of the data, the same for the same samples; kept in the manifest."""
        ...


class Progress(Protocol):
    """Where long work reports to. `total` None means unknown length."""

    def start(self, what: str, total: int | None) -> None: ...

    def advance(self, steps: int = 1) -> None: ...

    def finish(self) -> None: ...


class SilentProgress:
    """The progress of a program without a terminal."""

    def start(self, what: str, total: int | None) -> None:
        pass

    def advance(self, steps: int = 1) -> None:
        pass

    def finish(self) -> None:
        pass


Metric = Callable[[Callable[[Sample], Mapping[str, np.ndarray[Any, Any]]]], float]
"""A user's metric: gets a function that runs a model on one sample, returns a number (higher is better)."""


@dataclass
class CompileContext:
    """Everything a pass may read, and the facts it may write (statistics, plan, notices).

    Attributes:
        float_model: path of the model as the user gave it: the reference of every numeric proof.
        device: where methods that solve for weights compute, and what they read and write lies.
        without_samples: a pass found that there are no samples and that none can be made up; what is known of
            activations all the same lies in `statistics`.
        held_out: samples kept away from calibration for the numeric proofs.
        moments: mean and deviation of values for each channel, as the BatchNormalization that wrote them knew
            (fold-batch-norm records them), by value name.
        calibrated: the runs of calibration so far, as they go into a checkpoint or a table.
        following: the passes of the recipe behind the one that runs.
        unquantized: the model as the quantize phase found it: what the layers of the result are held against.
        edits: names of the passes that changed the float function on purpose. `unquantized` is then there in any
            recipe, and is what the outputs are held against.
        measured: times of operations on the device at hand; None where placement goes by the target's table.
        tuning: the file that such times are read from and kept in; None is the one in the user's cache.
        metric_float: what `metric` gives for the float model, once it was measured.
        checkpoint: where statistics are saved while calibration runs; None switches that off.
    """

    target: Target
    float_model: Path
    calibration: SampleSource | None = None
    without_samples: bool = False
    held_out: list[Sample] = field(default_factory=list)
    seed: int = 0
    device: Device = Device.CPU
    progress: Progress = field(default_factory=SilentProgress)
    statistics: StatisticsTable = field(default_factory=StatisticsTable)
    calibrated: CalibrationTable | None = None
    requests: list[StatisticRequest] = field(default_factory=list)
    moments: dict[str, Moments] = field(default_factory=dict)
    following: Sequence[Pass] = ()
    plan: QuantPlan = field(default_factory=QuantPlan)
    codes: Codes | None = None
    measured: Measured | None = None
    tuning: Path | None = None
    notices: list[str] = field(default_factory=list)
    checkpoint: Path | None = None
    resume: bool = False
    metric: Metric | None = None
    metric_float: float | None = None
    unquantized: ir.Model | None = None
    edits: list[str] = field(default_factory=list)
    report: Report | None = None

    @property
    def float_providers(self) -> tuple[str, ...]:
        """Execution providers for the float model: it gives the same on a GPU, whatever the target."""
        return self.target.providers if self.device is Device.CPU else (CUDA, *self.target.providers)

    def notice(self, text: str) -> None:
        """Tell the user something in the report and on the terminal, once."""
        if text not in self.notices:
            self.notices.append(text)
