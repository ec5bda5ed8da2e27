"""One ONNX Runtime session that walks the calibration samples, some at a time, and hands back outputs in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from qcompile.errors import DataError
from qcompile.runtime.ahead import ahead, cores
from qcompile.runtime.providers import CPU, TENSORRT, open_session, provider_options, reason, why_not_loaded

Result = TypeVar("Result")
Outputs = list[np.ndarray[Any, Any]]
Feed = dict[str, np.ndarray[Any, Any]]

_MOST_AT_ONCE = 4
"""Samples in flight on the CPU. Whole samples side by side use the cores better than the threads of one
operator do (measured: 0.6 s instead of 0.8 s for 64 images on two cores), but each holds its activations."""


def calibration_provider(providers: tuple[str, ...]) -> str:
    """The best of the target's execution providers that loads here and needs no engine built."""
    return next((p for p in providers if p != TENSORRT and not why_not_loaded(p)), CPU)


def run_samples(
    model: bytes | Path,
    samples: Iterable[Mapping[str, np.ndarray[Any, Any]]],
    providers: tuple[str, ...],
    entries: Mapping[str, str] | None = None,
) -> Iterator[Outputs]:
    """Run `model` on every sample, lazily; memory holds a few samples, however many there are.

    Yields:
        The outputs of each sample, in the order of the model's outputs, sample after sample.

    Args and errors: those of `read_samples`.
    """
    yield from read_samples(model, samples, providers, lambda outputs: outputs, entries)


def read_samples(
    model: bytes | Path,
    samples: Iterable[Mapping[str, np.ndarray[Any, Any]]],
    providers: tuple[str, ...],
    read: Callable[[Outputs], Result],
    entries: Mapping[str, str] | None = None,
) -> Iterator[Result]:
    """What `read` makes of the outputs of each sample; it works beside the run of the next samples.

    Args:
        model: a serialized model, or the path of one (models with external data).
        providers: the target's execution providers; `calibration_provider` says which one runs.
        entries: session options by key.

    Raises:
        DataError: the model cannot run on a sample.
        ModelError: ONNX Runtime refuses the model.
    """
    provider = calibration_provider(providers)
    at_once = min(cores(), _MOST_AT_ONCE) if provider == CPU else 1
    session = _open(model, provider, max(cores() // at_once, 1), entries or {})
    names = {i.name for i in session.get_inputs()}
    feeds = ({k: v for k, v in sample.items() if k in names} for sample in samples)
    yield from ahead(partial(_run, session, read), feeds, at_once)


def open_runner(model: bytes | Path, providers: tuple[str, ...]) -> Callable[[Mapping[str, Any]], Outputs]:
    """`model` as a function of one sample, for samples that depend on the outputs of those before."""
    session = _open(model, calibration_provider(providers), cores(), {})
    return lambda sample: _run(session, lambda outputs: outputs, dict(sample))


def _open(model: bytes | Path, provider: str, threads: int, entries: Mapping[str, str]) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    for entry, value in entries.items():
        options.add_session_config_entry(entry, value)
    if provider == CPU:
        options.intra_op_num_threads = threads
    return open_session(model, options, provider, provider_options(provider, 0, None))


def _run(session: Any, read: Callable[[Outputs], Result], feed: Feed) -> Result:
    try:
        outputs: Outputs = session.run(None, feed)
    except Exception as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
        raise DataError(
            f"the model cannot run on a calibration sample: {reason(error)}",
            where=shapes,
            hint="are the shapes and values of this sample those that the model is made for?",
        ) from None
    return read(outputs)
