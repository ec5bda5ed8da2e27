"""NVIDIA's libraries that ONNX Runtime's providers need: found where pip put them, named when they are missing.

A provider is a shared library that needs others, and the loader names the first one it misses. Whose that is, which
version of it is here instead, and what to install, is said here.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

_BELONGS = {  # a library's name -> whose it is, what pip installs
    "nvinfer": ("TensorRT", "tensorrt-cu13==10.14.*"),
    "nvonnxparser": ("TensorRT", "tensorrt-cu13==10.14.*"),
    "cudnn": ("cuDNN", "nvidia-cudnn-cu13"),
    "cudart": ("CUDA", "onnxruntime-gpu[cuda,cudnn]"),
    "cublas": ("CUDA", "onnxruntime-gpu[cuda,cudnn]"),
    "cublasLt": ("CUDA", "onnxruntime-gpu[cuda,cudnn]"),
}
_NO_CUDNN = "cuDNN is unavailable"

_SYSTEM = ("/usr/local/cuda/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64")
_SONAME = re.compile(r"lib(\w+)\.so\.(\d+)")


def find_libraries() -> None:
    """Load the libraries of CUDA, cuDNN and TensorRT from their pip packages where these are installed."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.suppress(Exception), contextlib.redirect_stdout(None):
            onnxruntime.preload_dlls()
    for name in ("nvinfer", "nvonnxparser"):  # the parser needs the other
        for path in _packaged(f"lib{name}.so.*"):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def why_not_loaded(library: str) -> str:
    """Why a provider's own library does not load, empty when it does.

    Args:
        library: its file in ONNX Runtime's folder.
    """
    import onnxruntime

    path = Path(onnxruntime.__file__).parent / "capi" / library
    if not path.exists():
        return "the installed ONNX Runtime was built without it (pip install onnxruntime-gpu)"
    find_libraries()
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return _explained(str(error))
    return ""


def no_cudnn(error: str) -> str:
    """What an error of ONNX Runtime says of cuDNN, which it opens when the first kernel wants it; empty otherwise."""
    at = error.find(_NO_CUDNN)
    return f"{error[at:].splitlines()[0].strip()} (pip install {_BELONGS['cudnn'][1]})" if at >= 0 else ""


def _explained(error: str) -> str:
    """What the loader's message means, such as `libcublas.so.13: cannot open shared object file: No such file ...`."""
    missing = error.split(":")[0]
    soname = _SONAME.fullmatch(missing)
    if soname is None or soname[1] not in _BELONGS:
        return f"{missing} is missing" if "cannot open" in error else error
    product, package = _BELONGS[soname[1]]
    others = sorted({version for version in _versions(soname[1]) if version != int(soname[2])})
    instead = f", {product} {' and '.join(map(str, others))} is here" if others else ""
    return f"{product} {soname[2]} is missing ({missing}){instead}: pip install '{package}'"


def _versions(name: str) -> Iterator[int]:
    """Versions of a library in the places where libraries lie."""
    folders = [*os.environ.get("LD_LIBRARY_PATH", "").split(":"), *_SYSTEM]
    files = [path for folder in folders if folder for path in Path(folder).glob(f"lib{name}.so.*")]
    for path in [*files, *_packaged(f"lib{name}.so.*")]:
        if found := _SONAME.match(path.name):
            yield int(found[2])


def _packaged(pattern: str) -> Iterator[Path]:
    """Libraries in the Python packages of NVIDIA."""
    for package, inside in (("nvidia", "*/lib"), ("tensorrt_libs", ".")):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            yield from sorted(Path(folder).glob(f"{inside}/{pattern}"))
