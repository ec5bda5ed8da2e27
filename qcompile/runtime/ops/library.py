"""A built library of kernels: opening it, reading what is inside, and registering it in a session's options."""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.errors import TargetError
from qcompile.runtime.ops import places, tuning

_HINT = "build it again: qcompile ops build"


@dataclass(frozen=True)
class Library:
    """What is inside a library.

    Attributes:
        operators: for each provider ("cpu", "cuda"), operator name -> its signature, "name(inputs) -> (outputs)".
        onnxruntime: the version of ONNX Runtime's C API that it was built for.
        cuda: CUDA's version, empty for a build without it.
        architectures: what its CUDA kernels were compiled for, as CMake names them.
    """

    path: Path
    operators: Mapping[str, Mapping[str, str]]
    onnxruntime: int
    cuda: str = ""
    architectures: tuple[str, ...] = ()


def open_library(path: Path) -> Library:
    """Open the library at `path`.

    Raises:
        TargetError: there is no such file, it is damaged, something that it needs is not on this machine, it is no
            library of qcompile's operators, or it was built for a newer ONNX Runtime than the installed one.
    """
    if not path.is_file():
        raise TargetError("the library of kernels is not there", where=str(path), hint=_HINT)
    return _open(path.resolve(), path.stat().st_mtime_ns)


def register(options: Any, path: Path) -> None:
    """Register the kernels of the library at `path` in an `onnxruntime.SessionOptions`, tuned as it was on this device.

    Raises:
        TargetError: as `open_library`, or ONNX Runtime refuses the library.
    """
    open_library(path)
    try:
        options.register_custom_ops_library(str(path.resolve()))
    except Exception as error:
        raise TargetError(
            f"ONNX Runtime refuses the library of kernels: {error}", where=str(path), hint=_HINT
        ) from None
    if found := places.cusparselt():
        os.environ.setdefault(places.CUSPARSELT, str(found))
    tuning.apply(path)


@functools.lru_cache
def _open(path: Path, _modified: int) -> Library:
    if not _complete(path):
        raise TargetError("the library of kernels is damaged", where=str(path), hint=_HINT)
    try:
        library = ctypes.CDLL(str(path))
        texts = []
        for name in ("qcompile_build", "qcompile_operators"):
            function = getattr(library, name)
            function.restype = ctypes.c_char_p
            texts.append(function().decode())
    except OSError as error:
        raise TargetError(f"the library of kernels does not load: {error}", where=str(path), hint=_HINT) from None
    except AttributeError:
        raise TargetError("no library of qcompile's operators", where=str(path), hint=_HINT) from None
    built = dict(part.split(" ", 1) for part in texts[0].split(", "))
    operators: dict[str, dict[str, str]] = {"cpu": {}, "cuda": {}}
    for line in texts[1].splitlines():
        provider, signature = line.split(" ", 1)
        operators[provider][signature.partition("(")[0]] = signature
    found = Library(
        path, operators, int(built["onnxruntime"]), built.get("cuda", ""), tuple(built.get("architectures", "").split())
    )
    if found.onnxruntime > runtime_version():
        raise TargetError(
            f"the library of kernels was built for ONNX Runtime 1.{found.onnxruntime}, "
            f"1.{runtime_version()} is installed",
            where=str(path),
            hint="build it with older headers (qcompile ops build --ort-headers), or update onnxruntime",
        )
    return found


def runtime_version() -> int:
    """The minor version of the installed ONNX Runtime, which is the version of its C API."""
    import onnxruntime

    return int(onnxruntime.__version__.split(".")[1])


def _complete(path: Path) -> bool:
    """Whether an ELF file is as long as its header says: to map one that was cut off can kill the process."""
    with path.open("rb") as file:
        header = file.read(64)
    if header[:5] != b"\x7fELF\x02":  # not 64-bit ELF: the loader looks itself
        return True
    if len(header) < 64:
        return False
    (table,) = struct.unpack_from("<Q", header, 40)
    size, count = struct.unpack_from("<HH", header, 58)
    return bool(path.stat().st_size >= table + size * count)
