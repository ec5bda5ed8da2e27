"""Opening a model: the best provider that loads, and how the model is run there."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.errors import ModelError, TargetError, UsageError
from qcompile.runtime import cuda_graphs
from qcompile.runtime.device_memory import used_and_total
from qcompile.runtime.engines import EngineCache
from qcompile.runtime.execution import Execution, choose
from qcompile.runtime.providers import CPU, CUDA, Candidate, open_session
from qcompile.runtime.settings import Settings


@dataclass(frozen=True)
class Opened:
    """A model on one provider.

    Attributes:
        session: the `onnxruntime.InferenceSession`.
        why: why this provider, and why not a better one.
        execution: how it is run.
        taken: bytes of the GPU's memory that opening took.
        engines: where the engines that it builds are kept.
    """

    session: Any
    provider: str
    why: str
    execution: Execution
    taken: int
    engines: EngineCache | None


def open_model(path: Path, tried: Sequence[Candidate], settings: Settings) -> Opened:
    """The model at `path` on the first of `tried` that loads.

    Raises:
        TargetError: none does.
        ModelError: ONNX Runtime refuses the model.
        UsageError: there is no GPU of that number.

    Warns:
        UserWarning: a provider did not load and the next one took its place.
    """
    lost: list[str] = []
    for candidate in tried:
        engines = settings.engines(path, candidate.provider)
        before = _used(candidate.provider, settings.device)
        try:
            session, no_graphs = _opened(path, candidate.provider, settings, engines)
        except TargetError as error:
            lost.append(error.what)
            continue
        except ModelError as error:
            if missing := settings.lacks_memory(error.what):
                raise ModelError(f"{missing} to open the model", where=str(path)) from None
            if "Invalid device ID" in error.what:
                raise UsageError(f"this machine has no GPU {settings.device}", hint="they are counted from 0") from None
            raise
        if lost:
            warnings.warn(f"{'; '.join(lost)}; running on {candidate.provider}", stacklevel=4)
        why = "; ".join([*lost, candidate.why])
        taken = _used(candidate.provider, settings.device) - before
        execution = choose(session, candidate.provider, settings, no_graphs)
        return Opened(session, candidate.provider, why, execution, taken, engines)
    raise TargetError("no provider can run the model: " + "; ".join(lost), where=str(path))


def _used(provider: str, device: int) -> int:
    """Bytes in use on the GPU; on the CPU no GPU is asked, which would start CUDA."""
    found = used_and_total(device) if provider != CPU else None
    return found[0] if found else 0


def _opened(path: Path, provider: str, settings: Settings, engines: EngineCache | None) -> tuple[Any, str]:
    """A session, and why it cannot capture CUDA graphs if it was to."""
    options, why = settings.provider_options(provider, engines), ""
    if settings.cuda_graphs and provider == CUDA:
        try:
            session = open_session(path, settings.session_options(), provider, options | cuda_graphs.OPTION)
            if not (why := cuda_graphs.refusal(session)):
                return session, ""
            del session
        except ModelError as error:
            why = error.what
    return open_session(path, settings.session_options(), provider, options), why
