"""One ONNX Runtime session that walks the calibration samples and hands back its outputs, one sample at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Outputs = list[np.ndarray[Any, Any]]


def run_samples(
    model: bytes | Path, samples: Iterable[Mapping[str, np.ndarray[Any, Any]]], providers: tuple[str, ...]
) -> Iterator[Outputs]:
    """Run `model` on every sample, lazily.

    Args:
        model: a serialized model, or the path of one (models with external data).
        providers: execution providers in order of preference; those that are not installed are left out.

    Yields:
        The outputs of each sample, in the order of the model's outputs.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    present = [p for p in providers if p in ort.get_available_providers()] or ["CPUExecutionProvider"]
    session = ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=present)
    names = {i.name for i in session.get_inputs()}
    for sample in samples:
        yield session.run(None, {k: v for k, v in sample.items() if k in names})
