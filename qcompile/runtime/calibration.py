"""One ONNX Runtime session that walks the calibration samples and hands back its outputs, one sample at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.errors import DataError
from qcompile.runtime.providers import CPU, TENSORRT, open_session, provider_options, reason, why_not_loaded

Outputs = list[np.ndarray[Any, Any]]


def run_samples(
    model: bytes | Path, samples: Iterable[Mapping[str, np.ndarray[Any, Any]]], providers: tuple[str, ...]
) -> Iterator[Outputs]:
    """Run `model` on every sample, lazily.

    Args:
        model: a serialized model, or the path of one (models with external data).
        providers: the target's execution providers; the best one that loads here and needs no engine built runs.

    Yields:
        The outputs of each sample, in the order of the model's outputs.

    Raises:
        DataError: the model cannot run on a sample.
        ModelError: ONNX Runtime refuses the model.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    provider = next((p for p in providers if p != TENSORRT and not why_not_loaded(p)), CPU)
    session = open_session(model, options, provider, provider_options(provider, 0, None))
    names = {i.name for i in session.get_inputs()}
    for sample in samples:
        feed = {k: v for k, v in sample.items() if k in names}
        try:
            outputs = session.run(None, feed)
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
            raise DataError(
                f"the model cannot run on a calibration sample: {reason(error)}",
                where=shapes,
                hint="are the shapes and values of this sample those that the model is made for?",
            ) from None
        yield outputs
