"""TensorRT's engines between processes: where they are kept, and when they may be used again.

ONNX Runtime finds an engine again by the names of the model, its inputs and its values, not by its weights: a model
that was compiled anew would get the engine of the old one, with the old weights. So every artifact has a folder of its
own, named by the digest of its bytes, below one for the GPU and the versions that engines are built for:

    engines/NVIDIA-H100-80GB-HBM3-sm90-cuda13.0-tensorrt10.14.1/timing     how long kernels took, for all models
    engines/NVIDIA-H100-80GB-HBM3-sm90-cuda13.0-tensorrt10.14.1/4f0c...    engines of one artifact

Source of the first sentence: onnxruntime/core/providers/tensorrt/tensorrt_execution_provider_utils.h, TRTGenerateId.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from qcompile.runtime import tensorrt_rtx
from qcompile.runtime.external_tensors import external_files
from qcompile.runtime.gpu import Gpu, find_gpu
from qcompile.runtime.ops.places import cache

_DIGITS = 16


@dataclass(frozen=True)
class EngineCache:
    """Where the engines of one artifact are kept for one GPU, and what many models share."""

    engines: Path
    timing: Path

    def options(self, provider: str) -> dict[str, str]:
        """Options that let `provider` use it; the folders are made."""
        self.engines.mkdir(parents=True, exist_ok=True)
        if provider == tensorrt_rtx.NAME:
            return {"nv_runtime_cache_path": str(self.engines)}
        self.timing.mkdir(parents=True, exist_ok=True)
        return {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(self.engines),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(self.timing),
        }

    def __str__(self) -> str:
        files = [path for path in self.engines.glob("*") if path.is_file() and path.suffix != ".profile"]
        size = sum(path.stat().st_size for path in files) / (1 << 20)
        return f"{len(files)} engine{'' if len(files) == 1 else 's'} kept ({size:.1f} MiB) in {self.engines}"


def engine_cache(model: Path, provider: str, device: int, base: Path | None = None) -> EngineCache | None:
    """The cache of `model` on GPU `device`; None where there is no GPU.

    Args:
        base: a folder of the user's in the place of `engines` in the user's cache.
    """
    gpu = find_gpu(device)
    if gpu is None:
        return None
    built_for = (base or cache().parent / "engines") / _name(gpu, provider)
    return EngineCache(built_for / digest(model), built_for / "timing")


def digest(model: Path) -> str:
    """Of the bytes of a model and of its external data."""
    import onnx

    found = hashlib.sha256()
    for path in [model, *sorted(external_files(onnx.load(model, load_external_data=False), model))]:
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:_DIGITS]


def _name(gpu: Gpu, provider: str) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "-", gpu.name).strip("-")
    (major, minor), (cuda, point) = gpu.capability, gpu.driver
    builder = "rtx" if provider == tensorrt_rtx.NAME else "tensorrt"
    return f"{name}-sm{major}{minor}-cuda{cuda}.{point}-{builder}{_version(provider)}"


def _version(provider: str) -> str:
    """TensorRT's version, by its own word; the plugin's for TensorRT-RTX, which brings its own."""
    if provider == tensorrt_rtx.NAME:
        return tensorrt_rtx.version()
    try:
        number = int(ctypes.CDLL("libnvinfer.so.10").getInferLibVersion())
    except (OSError, AttributeError):
        return ""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
