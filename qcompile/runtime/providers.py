"""Which execution provider runs a model, and why: the choice, its options, and the way down when one does not load."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.errors import TargetError, UsageError
from qcompile.runtime import libraries, model_header, tensorrt_rtx
from qcompile.runtime.engines import EngineCache
from qcompile.runtime.gpu import why_no_gpu

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
OPTIONS = "provider_options"
"""Key in the manifest of an artifact: the providers of its target that take it, and what each has to be told."""

ENGINES = "engines"
"""Key in the manifest of a context model: the provider whose engines it holds."""

ALL_BITS = {"use_tf32": "0"}
"""Options of the CUDA provider with which products of float32 are not rounded to 10 bits."""

BUILDERS = (TENSORRT, tensorrt_rtx.NAME)
"""Providers that build engines, which takes seconds to minutes and is done again on every other GPU."""

_SHORT = {"tensorrt": TENSORRT, "tensorrt-rtx": tensorrt_rtx.NAME, "cuda": CUDA, "cpu": CPU}
_NO_ENGINE = re.compile(
    r"TensorRT EP (failed|could not|Failed)|NvTensorRTRTX EP\] Failed|Optimization profile could not"
)
_ARENA = ("gpu_mem_limit", "arena_extend_strategy")
_LIBRARY = {TENSORRT: "libonnxruntime_providers_tensorrt.so", CUDA: "libonnxruntime_providers_cuda.so"}


@dataclass(frozen=True)
class Candidate:
    """A provider worth trying, and the reason."""

    provider: str
    why: str


def candidates(asked: Sequence[str] | None, manifest: Mapping[str, Any] | None) -> list[Candidate]:
    """Providers to try, best first; the CPU is always the last.

    Args:
        asked: providers the caller wants, by ONNX Runtime's name or as "tensorrt", "tensorrt-rtx", "cuda", "cpu".
        manifest: the model's: the target it was compiled for, the providers of this target that take it, and the
            provider whose engines it holds, which no other can run.

    Raises:
        UsageError: a name is not a provider of the installed ONNX Runtime.
    """
    import onnxruntime

    made_for = manifest or {}
    target, builders = made_for.get("target"), made_for.get(OPTIONS) or BUILDERS
    if asked is None and ENGINES in made_for:
        return [Candidate(made_for[ENGINES], "the model holds its engines")]
    available = [*onnxruntime.get_available_providers(), *([tensorrt_rtx.NAME] if tensorrt_rtx.installed() else [])]
    if asked is not None:
        if not asked:
            raise UsageError("the list of providers is empty", hint="give at least 'cpu', or leave it out")
        wanted = [Candidate(provider_named(name, available), "asked for") for name in asked]
    elif target == "tensorrt":
        compiled = "the model was compiled for TensorRT"
        wanted = [Candidate(provider, compiled) for provider in BUILDERS if provider in builders] + [
            Candidate(CUDA, "second to TensorRT")
        ]
    elif target == "cpu":
        wanted = [Candidate(CPU, "the model was compiled for the CPU")]
    else:
        wanted = [Candidate(CUDA, "the fastest provider that needs no build of engines")]
    found = [c for c in wanted if c.provider in available]
    if not any(c.provider == CPU for c in found):
        found.append(Candidate(CPU, "always there"))
    return found


def provider_named(name: str, available: Sequence[str]) -> str:
    """ONNX Runtime's name for `name`."""
    full = _SHORT.get(name.lower(), name)
    if full not in available:
        known = [short for short, provider in _SHORT.items() if provider in available]
        raise UsageError(
            f"the installed ONNX Runtime has no provider '{name}'", hint=f"it has {', '.join(known or available)}"
        )
    return full


def provider_options(provider: str, device: int, engines: EngineCache | None) -> dict[str, str]:
    """Options of one provider on GPU `device`.

    Args:
        engines: where TensorRT's engines are kept between processes; None builds them anew.
    """
    if provider == CPU:
        return {}
    kept = engines.options(provider) if engines is not None and provider in BUILDERS else {}
    return {"device_id": str(device)} | kept


def builder_of(model: Path) -> str:
    """The best provider of TensorRT's that takes an artifact."""
    taken = (model_header.manifest(model) or {}).get(OPTIONS) or BUILDERS
    return next(provider for provider in BUILDERS if provider in taken)


def compiled_options(model: Path | bytes, provider: str) -> dict[str, str]:
    """The options of `provider` that an artifact was compiled for, from its manifest.

    Raises:
        TargetError: the manifest names the providers that build engines of the artifact, and this is none of them.
    """
    manifest = model_header.manifest(model) if isinstance(model, Path) else None
    found = (manifest or {}).get(OPTIONS, {})
    if found and provider in BUILDERS and provider not in found:
        raise TargetError(f"{provider} cannot run the model: it was compiled for {' and '.join(found)}")
    return {str(name): str(value) for name, value in found.get(provider, {}).items()}


def _says(options: Any, entry: str) -> bool:
    """Whether a session option is set; ONNX Runtime warns of a second time."""
    try:
        options.get_session_config_entry(entry)
    except Exception:  # its way to say no
        return False
    return True


def session_entries(provider: str) -> dict[str, str]:
    """Session options without which the Q/DQ graphs made for a provider lose their meaning, wherever they run.

    TensorRT wants biases in float. ONNX Runtime's own optimizer would turn the bias of every Q/DQ convolution and Gemm
    into int32 of scale s_x * s_w before TensorRT sees it, and saturate it in channels of tiny weights
    (EfficientNet-Lite0's first convolution: 18.6 dB instead of 38.0). In half precision it rounds bias / (s_x * s_w) in
    float16, whose range ends at 65504: FP8 layers, whose scales are small, lose their biases on the CPU as well.
    """
    return {"session.disable_quant_qdq": "1"} if provider in BUILDERS else {}


def written_for(model: Path | bytes, provider: str) -> str:
    """The provider whose Q/DQ graph a model is: TensorRT's for its artifacts, also where `provider` stands in."""
    manifest = model_header.manifest(model) if isinstance(model, Path) else None
    return TENSORRT if (manifest or {}).get("target") == "tensorrt" else provider


def builder_entries(provider: str) -> dict[str, str]:
    """Session options without which TensorRT's builder does not see the graph as it was written.

    With its rewriting of Q/DQ switched off ONNX Runtime takes the DequantizeLinear of a weight for a constant like any
    other, and folds it: the builder would find quantized activations and float weights, and run nothing in int8.
    """
    return {"optimization.disable_specified_optimizers": "ConstantFolding"} if provider in BUILDERS else {}


def open_session(model: Path | bytes, options: Any, provider: str, provider_options: dict[str, str]) -> Any:
    """An `onnxruntime.InferenceSession` that really runs on `provider`.

    ONNX Runtime falls back to the CPU on its own, with lines on stdout and stderr. Here a provider
    that does not load is an error with its reason, and the caller decides.

    Operators of domain `qcompile` run by the kernels of our library where it is there, see `ops.kernels.choose`.
    On the CPU, external weights are read where they lie, see `mapped_weights`.

    Raises:
        TargetError: the provider does not load.
        ModelError: ONNX Runtime refuses the model.
    """
    import onnxruntime

    from qcompile.errors import ModelError
    from qcompile.runtime.mapped_weights import with_shared_weights
    from qcompile.runtime.ops import kernels

    if provider != CPU:
        libraries.find_libraries()
    for entry, value in (session_entries(written_for(model, provider)) | builder_entries(provider)).items():
        if not _says(options, entry):
            options.add_session_config_entry(entry, value)
    kernels.choose(model, provider).register(options)
    settings = compiled_options(model, provider) | provider_options
    if provider == tensorrt_rtx.NAME:
        if missing := why_not_loaded(provider):
            raise TargetError(f"{provider} does not load: {missing}")
        tensorrt_rtx.add(options, settings)
    try:
        source, weights = (
            (model, []) if isinstance(model, bytes) or provider != CPU else with_shared_weights(model, options)
        )
        with _quiet_loading():
            session = onnxruntime.InferenceSession(
                source if isinstance(source, bytes) else str(source),
                options,
                providers=chain(provider, settings) or None,
                enable_fallback=0,
            )
        session.shared_weights = weights
    except Exception as error:
        missing = why_not_loaded(provider)
        if provider != CPU and missing:
            raise TargetError(f"{provider} does not load: {missing}") from None
        if fault := libraries.no_cudnn(str(error)):
            raise TargetError(f"{provider} does not load: {fault}") from None
        if provider in BUILDERS and _NO_ENGINE.search(str(error)):
            raise TargetError(f"{provider} builds no engine: {reason(error)}") from None
        where = str(model) if isinstance(model, Path) else ""
        raise ModelError(f"ONNX Runtime refuses the model: {reason(error)}", where=where) from None
    if provider not in session.get_providers():
        raise TargetError(f"{provider} does not load: {why_not_loaded(provider) or 'ONNX Runtime gives no reason'}")
    return session


def why_not_loaded(provider: str) -> str:
    """What this machine lacks for `provider`, empty when nothing is missing."""
    if provider == tensorrt_rtx.NAME:
        return tensorrt_rtx.why_not_loaded()
    if provider not in _LIBRARY:
        return ""
    return why_no_gpu() or libraries.why_not_loaded(_LIBRARY[provider])


def chain(provider: str, options: dict[str, str]) -> list[Any]:
    """The providers of a session.

    TensorRT leaves what it cannot build to CUDA; the CPU takes the rest and needs no entry. Both run on the same
    stream; the arena is CUDA's, TensorRT knows no options for one. A plugin is no provider by name: the session's
    options hold its devices.
    """
    if provider == tensorrt_rtx.NAME:
        return []
    if provider != TENSORRT:
        return [(provider, options)]
    own = {name: value for name, value in options.items() if name not in _ARENA}
    shared = {name: options[name] for name in ("device_id", "user_compute_stream", *_ARENA) if name in options}
    return [(TENSORRT, own), (CUDA, shared)]


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """No error lines of ONNX Runtime while a provider is tried: what went wrong is said in our words."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        onnxruntime.set_default_logger_severity(2)


def reason(error: Exception) -> str:
    """What an error of ONNX Runtime says, without its codes and source positions."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rsplit(" : ", 1)[-1].rsplit("Status Message: ", 1)[-1].strip()
