"""Which execution provider runs a model, and why: the choice, its options, and the way down when one does not load."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.errors import TargetError, UsageError

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
_SHORT = {"tensorrt": TENSORRT, "cuda": CUDA, "cpu": CPU}
_ARENA = ("gpu_mem_limit", "arena_extend_strategy")
_LIBRARY = {TENSORRT: "libonnxruntime_providers_tensorrt.so", CUDA: "libonnxruntime_providers_cuda.so"}


@dataclass(frozen=True)
class Candidate:
    """A provider worth trying, and the reason."""

    provider: str
    why: str


def candidates(asked: Sequence[str] | None, target: str | None) -> list[Candidate]:
    """Providers to try, best first; the CPU is always the last.

    Args:
        asked: providers the caller wants, by ONNX Runtime's name or as "tensorrt", "cuda", "cpu".
        target: what the artifact was compiled for, from its manifest.

    Raises:
        UsageError: a name is not a provider of the installed ONNX Runtime.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if asked is not None:
        if not asked:
            raise UsageError("the list of providers is empty", hint="give at least 'cpu', or leave it out")
        wanted = [Candidate(provider_named(name, available), "asked for") for name in asked]
    elif target == "tensorrt":
        wanted = [Candidate(TENSORRT, "the model was compiled for TensorRT"), Candidate(CUDA, "second to TensorRT")]
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


def provider_options(provider: str, device: int, engine_cache: Path | None) -> dict[str, str]:
    """Options of one provider.

    Args:
        engine_cache: folder that keeps TensorRT's engines and timings between processes, made if missing.
    """
    if provider == CPU:
        return {}
    options = {"device_id": str(device)}
    if provider == TENSORRT and engine_cache is not None:
        engine_cache.mkdir(parents=True, exist_ok=True)
        folder = str(engine_cache)
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": folder}
        options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": folder}
    return options


def session_entries(provider: str) -> dict[str, str]:
    """Session options without which a provider's Q/DQ graphs lose their meaning.

    TensorRT wants biases in float. ONNX Runtime's own optimizer would turn the bias of every Q/DQ
    convolution into int32 of scale s_x * s_w before TensorRT sees it, and saturate it in channels of
    tiny weights (EfficientNet-Lite0's first convolution: 18.6 dB instead of 38.0).
    """
    return {"session.disable_quant_qdq": "1"} if provider == TENSORRT else {}


def builder_entries(provider: str) -> dict[str, str]:
    """Session options without which TensorRT's builder does not see the graph as it was written.

    With its rewriting of Q/DQ switched off ONNX Runtime takes the DequantizeLinear of a weight for a constant like any
    other, and folds it: the builder would find quantized activations and float weights, and run nothing in int8.
    """
    return {"optimization.disable_specified_optimizers": "ConstantFolding"} if provider == TENSORRT else {}


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
        find_cuda_libraries()
    for entry, value in (session_entries(provider) | builder_entries(provider)).items():
        options.add_session_config_entry(entry, value)
    kernels.choose(model, provider).register(options)
    try:
        source, weights = (
            (model, []) if isinstance(model, bytes) or provider != CPU else with_shared_weights(model, options)
        )
        with _quiet_loading():
            session = onnxruntime.InferenceSession(
                source if isinstance(source, bytes) else str(source),
                options,
                providers=chain(provider, provider_options),
                enable_fallback=0,
            )
        session.shared_weights = weights
    except Exception as error:
        missing = why_not_loaded(provider)
        if provider != CPU and missing:
            raise TargetError(f"{provider} does not load: {missing}") from None
        where = str(model) if isinstance(model, Path) else ""
        raise ModelError(f"ONNX Runtime refuses the model: {reason(error)}", where=where) from None
    if provider not in session.get_providers():
        raise TargetError(f"{provider} does not load: {why_not_loaded(provider) or 'ONNX Runtime gives no reason'}")
    return session


def why_no_gpu() -> str:
    """What this machine lacks to use an NVIDIA GPU, empty when nothing is missing."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is installed (libcuda.so.1)"
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver finds no GPU"
    return ""


def why_not_loaded(provider: str) -> str:
    """What this machine lacks for `provider`, empty when nothing is missing."""
    import onnxruntime

    library = _LIBRARY.get(provider)
    if library is None:
        return ""
    if missing := why_no_gpu():
        return missing
    try:
        ctypes.CDLL(str(Path(onnxruntime.__file__).parent / "capi" / library))
    except OSError as error:
        return str(error).split(":")[0] + " is missing"
    return ""


def chain(provider: str, options: dict[str, str]) -> list[Any]:
    """The providers of a session.

    TensorRT leaves what it cannot build to CUDA; the CPU takes the rest and needs no entry. Both run on the same
    stream; the arena is CUDA's, TensorRT knows no options for one.
    """
    if provider != TENSORRT:
        return [(provider, options)]
    own = {name: value for name, value in options.items() if name not in _ARENA}
    shared = {name: options[name] for name in ("device_id", "user_compute_stream", *_ARENA) if name in options}
    return [(TENSORRT, own), (CUDA, shared)]


def find_cuda_libraries() -> None:
    """Load CUDA's libraries from their pip packages where these are installed."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.suppress(Exception), contextlib.redirect_stdout(None):
            onnxruntime.preload_dlls()


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
