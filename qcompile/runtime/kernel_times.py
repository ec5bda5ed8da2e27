"""Time of a small model of few operations on one provider: inputs lie where it computes, outputs stay there.

The best of many runs is the time without what else the machine does; it is looked for until no better one comes. On a
GPU the device's own clock tells. Convolutions keep their channels in an order of their own, and a model of one
convolution changes it before and after; in a chain that happens at the ends only. So the time of these changes is told
apart, by ONNX Runtime's profile.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.errors import ModelError, QCompileError, TargetError
from qcompile.runtime.benchmark.device_clock import DeviceClock
from qcompile.runtime.libraries import no_cudnn
from qcompile.runtime.providers import CPU, open_session, provider_options, reason

_WARM, _FEWEST = 2, 5  # runs
_PATIENCE, _LONGEST = 0.03, 1.0  # seconds without a better run, and at all
_BETTER = 0.99
_AT_ONCE = 10  # runs between two events of a GPU
_PROFILED = 20
_LAYOUT = {"ReorderInput", "ReorderOutput", "Transpose"}


@dataclass(frozen=True)
class RunTime:
    """Time of one run in ns.

    Attributes:
        layout: what of it, besides, goes into changes of the order of channels.
    """

    kernels: float
    layout: float = 0.0


def run_time(model: bytes, provider: str, layouts: bool, options: Mapping[str, str] | None = None) -> RunTime:
    """Time of `model`, all of whose inputs have fixed shapes; they get random values.

    Args:
        layouts: tell changes of layout apart; the model then has no Transpose of its own.
        options: of the provider.

    Raises:
        TargetError: the provider, or what it opens for its first kernels, does not load on this machine.
        ModelError: ONNX Runtime refuses the model, or cannot run it.
    """
    try:
        best, share = _best(_Bound(model, provider, options)), _layout_share(model, provider) if layouts else 0.0
    except QCompileError:
        raise
    except Exception as error:
        if fault := no_cudnn(str(error)):
            raise TargetError(f"{provider} cannot run every kernel here: {fault}") from None
        raise ModelError(f"ONNX Runtime could not run the model: {reason(error)}") from None
    return RunTime(best * (1 - share), best * share)


class _Bound:
    """A session with everything it reads on its device.

    Attributes:
        gpu: the device, None for the CPU.
    """

    def __init__(self, model: bytes, provider: str, given: Mapping[str, str] | None = None, profile: str = "") -> None:
        import onnxruntime as ort

        self.gpu = None if provider == CPU else DeviceClock.of(0)
        settings, place = provider_options(provider, 0, None) | dict(given or {}), "cuda" if self.gpu else "cpu"
        if self.gpu:
            settings |= {"user_compute_stream": str(self.gpu.stream)}
        options, self.how = ort.SessionOptions(), ort.RunOptions()
        self.how.add_run_config_entry("disable_synchronize_execution_providers", "1" if self.gpu else "0")
        options.log_severity_level = 4
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        self.session = open_session(model, options, provider, settings)
        self.binding = self.session.io_binding()
        self.held = {port.name: _values(port.type, port.shape, place) for port in self.session.get_inputs()}
        for name, value in self.held.items():
            self.binding.bind_ortvalue_input(name, value)
        for port in self.session.get_outputs():
            self.binding.bind_output(port.name, place)

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding, self.how)


def _best(bound: _Bound) -> float:
    for _ in range(_WARM):
        bound.run()
    take = partial(_on_device, bound.gpu, bound.run) if bound.gpu else partial(_on_host, bound.run)
    begin = found = time.perf_counter()
    best, since = take(), 0
    while since < _FEWEST or time.perf_counter() < min(found + _PATIENCE, begin + _LONGEST):
        taken, since = take(), since + 1
        if taken < _BETTER * best:
            found, since = time.perf_counter(), 0
        best = min(best, taken)
    return best


def _on_host(run: Callable[[], None]) -> float:
    start = time.perf_counter_ns()
    run()
    return float(time.perf_counter_ns() - start)


def _on_device(gpu: DeviceClock, run: Callable[[], None]) -> float:
    return gpu.milliseconds(run, _AT_ONCE) / _AT_ONCE * 1e6


def _layout_share(model: bytes, provider: str) -> float:
    """The part of a run that changes layouts."""
    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        bound = _Bound(model, provider, profile=str(Path(folder) / "profile"))
        for _ in range(_PROFILED):
            bound.run()
        events = json.loads(Path(bound.session.end_profiling()).read_text())
    best: dict[tuple[str, str], float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = event["name"], event["args"]["op_name"]
            best[key] = min(best.get(key, math.inf), event["dur"])
    total = sum(best.values())
    return sum(time for (_, operator), time in best.items() if operator in _LAYOUT) / total if total else 0.0


def _values(kind: str, shape: list[int], place: str) -> Any:
    """Random floats and codes, whatever lies in memory of types that numpy lacks; indices are 0."""
    import onnx
    import onnxruntime as ort

    rng, name = np.random.default_rng(0), kind.removeprefix("tensor(").removesuffix(")")
    array: np.ndarray[Any, Any]
    match name:
        case "float" | "float16":
            array = rng.standard_normal(shape).astype("float32" if name == "float" else name)
        case "uint8" | "int8":
            array = rng.integers(0, 256, shape, np.uint8).view(name)
        case "int64" | "int32" | "bool":
            array = np.zeros(shape, name)
        case "float8e4m3fn" | "bfloat16":
            element = onnx.TensorProto.DataType.Value(name.upper())
            return ort.OrtValue.ortvalue_from_shape_and_type(shape, element, place, 0)
        case _:
            raise ModelError(f"no operation with values of type {kind} is measured")
    return ort.OrtValue.ortvalue_from_numpy(array, place, 0)
