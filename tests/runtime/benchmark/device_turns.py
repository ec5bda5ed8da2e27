"""As a program, on a stub of CUDA: a benchmark of the CUDA provider. Prints what was seen, as JSON.

The stub's kernels do nothing and its clock is the host's, so the times are those of the session's own work.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from onnxruntime import OrtValue

from qcompile.errors import TargetError
from qcompile.frontends.model_file import load_model
from qcompile.frontends.samples.sizes import points
from qcompile.runtime import graph_execution
from qcompile.runtime.benchmark import ceilings, on_device
from qcompile.runtime.benchmark.bench import bench
from qcompile.runtime.benchmark.device_clock import DeviceClock
from qcompile.runtime.providers import CUDA
from tests.runtime import shaped_models
from tests.runtime.cuda_graph_sessions import REFUSED


class Watched:
    """A session that remembers where its inputs lay."""

    def __init__(self) -> None:
        self.inputs = [type("Port", (), {"name": "x"})]
        self.seen: list[OrtValue] = []

    def __call__(self, feed: dict[str, OrtValue]) -> None:
        self.seen.append(feed["x"])


def of_inputs(dtype: type) -> dict[str, Any]:
    """As many copies as the stub's cache of 4096 bytes asks for, one after the other."""
    session: Any = Watched()
    x = np.arange(4096 // np.dtype(dtype).itemsize).astype(dtype)
    run = on_device.Device(CUDA).runner(session, {"x": x})
    session.seen.clear()
    for _ in range(4):
        run()
    first, second, *again = session.seen
    return {
        "copies": len({value.data_ptr() for value in session.seen}),
        "repeats": again == [first, second],
        "type": first.data_type(),
        "device": first.device_name(),
        "values": ctypes.string_at(second.data_ptr(), x.nbytes) == x.tobytes(),
    }


def of_no_device() -> str:
    try:
        DeviceClock.of(1)
    except TargetError as error:
        return str(error)
    return ""


def of_bench(decoder: str) -> dict[str, Any]:
    """A decoder in both phases, the first of which has an empty cache."""
    path = Path(decoder)
    return bench([path], points(load_model(path), path, None, [2], [6]), CUDA, seconds=0).data()


def of_graphs(text: str) -> list[int] | str:
    """Replays before and after four turns of two runs at least, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(shaped_models.model(text))
        device = on_device.Device(CUDA, graphs=True)
        session = device.open(path)
        try:
            run = device.runner(session, shaped_models.feed(text, 4, 8))
        except TargetError as error:
            return str(error)
        found = [session.description.state.buckets[0].replays]
        for _ in range(4):
            device.turn(run)
        return [*found, session.description.state.buckets[0].replays]


if __name__ == "__main__":
    for name, small in (("_SIDES", (32,)), ("_VECTOR", 64)):
        getattr(ceilings, name)[CUDA] = small
    ceilings._SECONDS = 0.0
    graph_execution.close = lambda *_: True  # a replay does nothing here
    print(
        json.dumps(
            {
                "float32": of_inputs(np.float32),
                "bfloat16": of_inputs(ml_dtypes.bfloat16),
                "int64": of_inputs(np.int64),
                "no device": of_no_device(),
                "bench": of_bench(sys.argv[1]),
                "graphs": of_graphs(shaped_models.TOKEN_BY_TOKEN),
                "no graphs": of_graphs(REFUSED["gather"]),
            }
        )
    )
