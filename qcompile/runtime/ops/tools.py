"""What building the library of kernels takes: where each part was found, and how to get those that are missing."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from qcompile.errors import TargetError, UsageError
from qcompile.runtime.ops.library import runtime_version

T = TypeVar("T")

_CMAKE, _NVCC, _API = (3, 24), (12, 8), 18
"""The oldest versions that serve: of CMake, of CUDA's compiler, of ONNX Runtime's C API."""

_ROOTS = (Path("/usr/include"), Path("/usr/local/include"), Path("/opt/onnxruntime/include"))
_CUDA_ROOT = Path("/usr/local")


@dataclass(frozen=True)
class Cuda:
    """What CUDA kernels take on top: the compiler with its version, and folders of headers."""

    nvcc: Path
    version: str
    cutlass: Path
    cusparselt: Path


@dataclass(frozen=True)
class Tools:
    """Everything that a build takes.

    Attributes:
        generator: what runs the compilers, by CMake's name, and `make`, its path.
        headers: the folder with onnxruntime_c_api.h, which is of version `api` of ONNX Runtime's C API.
        cuda: None for a library of CPU kernels alone.
    """

    cmake: Path
    generator: str
    make: Path
    compiler: Path
    headers: Path
    api: int
    cuda: Cuda | None


class _Missing(Exception):
    """What is not there, and how to get it."""


def find_tools(cuda: bool | None = None, headers: Path | None = None) -> Tools:
    """Find what a build takes.

    Args:
        cuda: with CUDA kernels; None: if CUDA's compiler is there.
        headers: the folder with ONNX Runtime's C headers; left out, the usual places are searched.

    Raises:
        UsageError: `headers` is not such a folder.
        TargetError: something is missing; all of it is named.
    """
    if headers is not None and not (headers / "onnxruntime_c_api.h").is_file():
        raise UsageError("this folder has no onnxruntime_c_api.h", where=str(headers))
    missing: list[str] = []

    def found(find: Callable[[], T]) -> T | None:
        try:
            return find()
        except _Missing as error:
            missing.append(str(error))
            return None

    cmake, make, compiler = found(_cmake), found(_make), found(_compiler)
    runtime = found(lambda: _headers(headers))
    wanted = _nvcc_path() is not None if cuda is None else cuda
    gpu = (found(_nvcc), found(_cutlass), found(_cusparselt)) if wanted else None
    if missing or cmake is None or make is None or compiler is None or runtime is None:
        hint = "get them and run this again" + ("; --no-cuda builds the CPU kernels alone" if wanted else "")
        raise TargetError("the library cannot be built: " + "; ".join(missing), hint=hint)
    kernels = None
    if gpu is not None:
        nvcc, cutlass, cusparselt = gpu
        assert nvcc is not None
        assert cutlass is not None
        assert cusparselt is not None
        kernels = Cuda(*nvcc, cutlass, cusparselt)
    return Tools(cmake, *make, compiler, *runtime, kernels)


def _cmake() -> Path:
    path = _program("cmake")
    if path is None:
        raise _Missing("CMake is missing (pip install cmake)")
    version = _version([str(path), "--version"])
    if version < _CMAKE:
        raise _Missing(f"CMake {_dotted(version)} is too old, {_dotted(_CMAKE)} is needed (pip install cmake)")
    return path


def _make() -> tuple[str, Path]:
    if ninja := _program("ninja"):
        return "Ninja", ninja
    if make := shutil.which("make"):
        return "Unix Makefiles", Path(make)
    raise _Missing("neither Ninja nor Make is there (pip install ninja)")


def _compiler() -> Path:
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return Path(path)
    raise _Missing("a C++17 compiler is missing (Debian: apt install g++)")


def _headers(given: Path | None) -> tuple[Path, int]:
    """The folder of ONNX Runtime's C headers, and their version."""
    places = [given] if given is not None else list(_header_places())
    place = next((p for p in places if (p / "onnxruntime_c_api.h").is_file()), None)
    if place is None:
        raise _Missing(
            "ONNX Runtime's C headers are missing (Debian: apt install libonnxruntime-dev; or unpack an "
            "onnxruntime-linux archive of its releases and give its include folder with --ort-headers)"
        )
    line = re.search(r"#define ORT_API_VERSION (\d+)", (place / "onnxruntime_c_api.h").read_text(errors="replace"))
    api = int(line[1]) if line else 0
    if not _API <= api <= runtime_version():
        raise _Missing(
            f"the headers in {place} are of ONNX Runtime 1.{api}; any from 1.{_API} to 1.{runtime_version()}, which "
            "is installed, serve (--ort-headers)"
        )
    return place, api


def _header_places() -> Iterator[Path]:
    if named := os.environ.get("ONNXRUNTIME_INCLUDE"):
        yield Path(named)
    for root in _ROOTS:
        yield from (root, root / "onnxruntime", root / "onnxruntime/core/session")


def _nvcc() -> tuple[Path, str]:
    path = _nvcc_path()
    if path is None:
        raise _Missing("CUDA's compiler, nvcc, is missing (a CUDA toolkit, or pip install nvidia-cuda-nvcc)")
    version = _version([str(path), "--version"], after="release ")
    if version < _NVCC:
        raise _Missing(f"CUDA {_dotted(version)} is too old, {_dotted(_NVCC)} is needed")
    return path, _dotted(version)


def _nvcc_path() -> Path | None:
    named = [os.environ.get("CUDACXX", "")]
    named += [f"{os.environ[name]}/bin/nvcc" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    installed = sorted(_CUDA_ROOT.glob("cuda*/bin/nvcc"), reverse=True)
    packages = [path for place in _package("nvidia") for path in sorted(place.glob("*/bin/nvcc"), reverse=True)]
    for name in (*named, "nvcc", *map(str, (*installed, *packages))):
        if name and (path := shutil.which(name)):
            return Path(path)
    return None


def _cutlass() -> Path:
    places = [place / "source" / "include" for place in _package("cutlass_library")]
    return _folder("cutlass/cutlass.h", "CUTLASS", "CUTLASS_INCLUDE", "nvidia-cutlass", places)


def _cusparselt() -> Path:
    places = [path for place in _package("nvidia") for path in sorted(place.glob("*/include"), reverse=True)]
    return _folder("cusparseLt.h", "cuSPARSELt", "CUSPARSELT_INCLUDE", "nvidia-cusparselt-cu13", places)


def _folder(header: str, what: str, variable: str, package: str, places: list[Path]) -> Path:
    """The first folder that has `header`."""
    named = [Path(os.environ[variable])] if os.environ.get(variable) else []
    for place in (*named, *places, *_ROOTS, _CUDA_ROOT / "cuda" / "include"):
        if (place / header).is_file():
            return place
    raise _Missing(f"{what}'s headers are missing (pip install {package}, or {variable}=FOLDER)")


def _program(name: str) -> Path | None:
    """A program of the system, or of a package beside this Python."""
    path = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    return Path(path) if path else None


def _package(name: str) -> list[Path]:
    """The folders of an installed Python package, none when it is not there."""
    spec = importlib.util.find_spec(name)
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []


def _version(command: list[str], after: str = "version ") -> tuple[int, int]:
    """The version that a program says it has, (0, 0) when it says none."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = re.search(re.escape(after) + r"(\d+)\.(\d+)", done.stdout)
    return (int(said[1]), int(said[2])) if said else (0, 0)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
