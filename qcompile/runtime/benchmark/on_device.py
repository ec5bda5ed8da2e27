"""Turns on a GPU: events of the device around runs that follow each other on one stream.

Sessions run as a user's do, with inputs and outputs that stay on the device. Waits of the device for the host lie
between the events and count: they are part of what a session costs. With CUDA graphs inputs and outputs are numpy
arrays, since graphs read and write where they were captured: copies there and back count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.errors import TargetError
from qcompile.runtime.benchmark.device_clock import DeviceClock
from qcompile.runtime.benchmark.turns import Array, Sample, copies
from qcompile.runtime.graph_execution import Replayed
from qcompile.runtime.ports import onnx_number
from qcompile.runtime.session import Session

_WARM_UP = 10
"""Runs before the first turn: kernels are loaded and chosen, engines are built, memory is taken."""

_TURN = 50.0
_RUNS = (2, 200)
"""A turn lasts about 50 ms, but has so many runs at least and at most."""


class Device:
    """A GPU, and the provider that runs models on it.

    Args:
        graphs: replay CUDA graphs; a model that has none is not timed.
    """

    def __init__(self, provider: str, graphs: bool = False, number: int = 0) -> None:
        self._provider = provider
        self._graphs = graphs
        self._number = number
        self._clock = DeviceClock.of(number)

    def open(self, model: Path) -> Session:
        """A session on the stream that is timed."""
        session = Session(
            model, [self._provider], device=self._number, stream=self._clock.stream, cuda_graphs=self._graphs
        )
        if session.provider != self._provider:
            raise TargetError(f"{self._provider} does not run the model: {session.why}", where=str(model))
        return session

    def runner(self, session: Session, sample: Sample) -> Callable[[], None]:
        """One run, on copies of the inputs in turn; ten are done.

        Raises:
            TargetError: no CUDA graph answers, though it should.
        """
        names = {port.name for port in session.inputs}
        feed = {name: array for name, array in sample.items() if name in names}
        sets = copies(sum(a.nbytes for a in feed.values()), self._clock.l2_bytes)
        copied = np.copy if self._graphs else partial(_on_device, number=self._number)
        feeds = [{name: copied(array) for name, array in feed.items()} for _ in range(sets)]
        self._clock.wait()
        run = partial(_next, session, cycle(feeds))
        for _ in range(_WARM_UP):
            run()
        if self._graphs:
            _check_replayed(session)
        return run

    def turn(self, run: Callable[[], None]) -> float:
        """The mean of some runs, in ms of the device's clock; how many, the first two tell."""
        once = self._clock.milliseconds(run, 2) / 2
        runs = min(max(round(_TURN / max(once, 1e-3)), _RUNS[0]), _RUNS[1])
        return self._clock.milliseconds(run, runs) / runs


def _on_device(array: Array, number: int) -> Any:
    """An OrtValue on the GPU. It copies from numpy's own types alone: here unsigned integers of the same width."""
    from onnxruntime import OrtValue

    value = OrtValue.ortvalue_from_shape_and_type(array.shape, onnx_number(str(array.dtype)), "cuda", number)
    value.update_inplace(np.ascontiguousarray(array).view(f"u{array.itemsize}"))
    return value


def _next(session: Session, feeds: Iterator[dict[str, Any]]) -> None:
    session(next(feeds))


def _check_replayed(session: Session) -> None:
    said = session.description.state.buckets
    if not any(isinstance(entry, Replayed) for entry in said):
        raise TargetError("; ".join(map(str, said)), where=str(session.path), hint="time it without CUDA graphs")
