"""One ONNX Runtime session that walks the calibration samples, some at a time, and hands back outputs in order.

Where they are wanted on the GPU that runs the model, inputs and outputs are bound, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from qcompile.errors import DataError
from qcompile.runtime.ahead import ahead, cores
from qcompile.runtime.binding import BoundExecution
from qcompile.runtime.device import Device, fetch
from qcompile.runtime.execution import AnyExecution, Execution, HostExecution
from qcompile.runtime.providers import (
    ALL_BITS,
    CPU,
    CUDA,
    TENSORRT,
    open_session,
    provider_options,
    reason,
    why_not_loaded,
)
from qcompile.runtime.streams import Stream

Result = TypeVar("Result")
Array = Any  # numpy.ndarray or torch.Tensor
Outputs = list[Array]
Feed = dict[str, Array]

_MOST_AT_ONCE = 4
"""Samples in flight on the CPU. Whole samples side by side use the cores better than the threads of one
operator do (measured: 0.6 s instead of 0.8 s for 64 images on two cores), but each holds its activations."""

_CUDA_OPTIONS = {"arena_extend_strategy": "kSameAsRequested"} | ALL_BITS
"""Memory that is not needed is left to torch, and what is measured has all bits of float32."""


def calibration_provider(providers: tuple[str, ...]) -> str:
    """The best of the target's execution providers that loads here and needs no engine built."""
    return next((p for p in providers if p != TENSORRT and not why_not_loaded(p)), CPU)


def run_samples(
    model: bytes | Path,
    samples: Iterable[Mapping[str, Array]],
    providers: tuple[str, ...],
    entries: Mapping[str, str] | None = None,
    device: Device = Device.CPU,
) -> Iterator[Outputs]:
    """Run `model` on every sample, lazily; memory holds a few samples, however many there are.

    Yields:
        The outputs of each sample, in the order of the model's outputs, sample after sample.

    Args and errors: those of `read_samples`.
    """
    yield from read_samples(model, samples, providers, lambda outputs: outputs, entries, device)


def read_samples(
    model: bytes | Path,
    samples: Iterable[Mapping[str, Array]],
    providers: tuple[str, ...],
    read: Callable[[Outputs], Result],
    entries: Mapping[str, str] | None = None,
    device: Device = Device.CPU,
) -> Iterator[Result]:
    """What `read` makes of the outputs of each sample; it works beside the run of the next samples.

    Args:
        model: a serialized model, or the path of one (models with external data).
        providers: the target's execution providers; `calibration_provider` says which one runs.
        entries: session options by key.
        device: where `read` gets the outputs; samples may lie there too.

    Raises:
        DataError: the model cannot run on a sample.
        ModelError: ONNX Runtime refuses the model.
    """
    provider = calibration_provider(providers)
    at_once = min(cores(), _MOST_AT_ONCE) if provider == CPU else 1
    session = _open(model, provider, max(cores() // at_once, 1), entries or {})
    names = {i.name for i in session.get_inputs()}
    feeds = ({k: v for k, v in sample.items() if k in names} for sample in samples)
    execution, prepare = _execution(session, provider), fetch if provider == CPU else device.put
    yield from ahead(partial(_run, execution, prepare, device, read), feeds, at_once)


def open_runner(model: bytes | Path, providers: tuple[str, ...]) -> Callable[[Mapping[str, Any]], Outputs]:
    """`model` as a function of one sample, for samples that depend on the outputs of those before."""
    session = _open(model, calibration_provider(providers), cores(), {})
    return lambda sample: _run(HostExecution(session), fetch, Device.CPU, list, dict(sample))


def _open(model: bytes | Path, provider: str, threads: int, entries: Mapping[str, str]) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    for entry, value in entries.items():
        options.add_session_config_entry(entry, value)
    if provider == CPU:
        options.intra_op_num_threads = threads
    given = provider_options(provider, 0, None) | (_CUDA_OPTIONS if provider == CUDA else {})
    return open_session(model, options, provider, given)


def _execution(session: Any, provider: str) -> Execution:
    """Arrays in the CPU's memory are handed over, those on the GPU are bound, and so are the outputs then."""
    host = HostExecution(session)
    return host if provider == CPU else AnyExecution(host, BoundExecution(session, ("cuda", 0), Stream()))


def _run(
    execution: Execution,
    prepare: Callable[[Array], Array],
    device: Device,
    read: Callable[[Outputs], Result],
    feed: Feed,
) -> Result:
    try:
        outputs = execution.run({name: prepare(array) for name, array in feed.items()})
    except Exception as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
        raise DataError(
            f"the model cannot run on a calibration sample: {reason(error)}",
            where=shapes,
            hint="are the shapes and values of this sample those that the model is made for?",
        ) from None
    return read([device.put(output) for output in outputs.values()])
