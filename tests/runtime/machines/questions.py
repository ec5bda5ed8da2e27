"""As a program: what qcompile says of the machine it runs on."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def drivers(model: str, *machines: str) -> Any:
    """On machines whose driver answers as told (JSON): why each provider does not load, and where engines are kept."""
    from qcompile.runtime.engines import engine_cache
    from qcompile.runtime.gpu import find_gpu
    from qcompile.runtime.providers import CUDA, TENSORRT, why_not_loaded

    found = []
    for answers in map(json.loads, machines):
        os.environ.update(answers)
        cache = engine_cache(Path(model), TENSORRT, 0)
        said = {provider: why_not_loaded(provider) for provider in (CUDA, TENSORRT)}
        found.append(said | {"gpu": str(find_gpu(0)), "folder": str(cache.engines) if cache else None})
        for answer in answers:
            del os.environ[answer]
    return found


def session(model: str, *providers: str) -> Any:
    """A session with these providers: what runs, why, with which warning, and how a run ends."""
    import numpy as np

    from qcompile.errors import QCompileError
    from qcompile.runtime.session import Session

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        opened = Session(model, providers or None)
    found = {"provider": opened.provider, "why": opened.why, "warned": [str(w.message) for w in warned]}
    try:
        opened({port.name: np.zeros([size or 1 for size in port.shape], port.dtype) for port in opened.inputs})
    except QCompileError as error:
        found["error"] = error.what
    return found


_QUESTIONS: dict[str, Callable[..., Any]] = {"drivers": drivers, "session": session}

if __name__ == "__main__":
    print(json.dumps(_QUESTIONS[sys.argv[1]](*sys.argv[2:])))
