"""The artifact: a plain .onnx file, written whole or not at all, with the manifest of how it was made.

The manifest (JSON, sorted keys, no time and no paths, so that the same inputs and seed give the same
bytes) lies in the model's metadata under `qcompile.manifest`.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

import qcompile
from qcompile.compiler.context import Progress, SilentProgress
from qcompile.compiler.report import Report
from qcompile.compiler.serialization import PAGE, initializer_bytes
from qcompile.errors import OutputError, PassError
from qcompile.runtime.external_tensors import external_files
from qcompile.runtime.model_header import MANIFEST

_LARGEST_FILE = 256 << 20
"""Initializer bytes above which they go into `<name>.data`: a file without needs twice as much memory to be written."""

_SMALLEST_SHARE = 8
"""No recipe makes weights smaller than an eighth: less free space than that cannot be enough."""

_SHAPELESS = "Field 'shape' of 'type' is required but missing"
"""What the checker says of an output whose rank nobody knows; ONNX Runtime and exporters allow that."""


@dataclass(frozen=True)
class Artifact:
    """A compiled model: where it lies, and what compiling it found out."""

    path: Path
    report: Report


def write_model(
    model: ir.Model, path: Path, manifest: dict[str, Any], overwrite: bool = False, progress: Progress | None = None
) -> int:
    """Write `model` to `path` through a temporary folder beside it and a rename.

    Weights of more than 256 MiB go into `<name>.data` beside it.

    Returns:
        Bytes written, external data included.

    Raises:
        OutputError: the file exists, or cannot be written (no space, no right, no folder).
        PassError: the ONNX checker refuses the model.
    """
    external = data_file(path).name if initializer_bytes(model) > _LARGEST_FILE else None
    check_output(path, overwrite)
    if external and not overwrite and path.with_name(external).exists():
        raise _exists(path.with_name(external))
    model.producer_name, model.producer_version = "qcompile", qcompile.__version__
    model.metadata_props[MANIFEST] = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    with writing(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        written = Path(folder) / path.name
        _save(model, written, external, progress or SilentProgress())
        _check(written)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        if external:
            written.with_name(external).replace(path.with_name(external))
        written.replace(path)
    return size


def _save(model: ir.Model, path: Path, external: str | None, progress: Progress) -> None:
    if external is None:
        ir.external_data.load_to_model(model)
        ir.save(model, path)
        return
    progress.start("writing weights", sum(len(graph.initializers) for graph in model.graphs()))
    ir.save(
        model,
        path,
        external_data=external,
        alignment=PAGE,
        align_threshold=PAGE,
        callback=lambda tensor, info: progress.advance(),
    )
    progress.finish()


def write_text(text: str, path: Path) -> None:
    """Write a report to `path` through a temporary file and a rename; an older report is replaced.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        written = Path(folder) / path.name
        written.write_text(text, encoding="utf-8")
        written.replace(path)


def data_file(path: Path) -> Path:
    """Where the weights of an artifact at `path` go that do not go into it."""
    return path.with_name(path.name + ".data")


def model_files(path: Path) -> set[Path]:
    """The files of a model: its own and those of its external data."""
    import onnx

    return {path.resolve(), *external_files(onnx.load(path, load_external_data=False), path)}


def model_bytes(path: Path) -> int:
    """Size of a model: the file and the external data it refers to."""
    return sum(file.stat().st_size for file in model_files(path))


def check_output(path: Path, overwrite: bool, source_bytes: int = 0) -> None:
    """Find out before the work starts whether `path` can be written.

    Raises:
        OutputError: it exists, its folder does not or cannot be written to, or the disk is full.
    """
    if path.is_dir():
        raise OutputError("the output is a folder", where=str(path), hint="give the name of a file")
    if path.exists() and not overwrite:
        raise _exists(path)
    if not path.parent.is_dir():
        raise OutputError("the folder of the output does not exist", where=str(path.parent), hint="make it first")
    with writing(path):
        tempfile.TemporaryFile(dir=path.parent, prefix=f".{path.name}.").close()
        free = shutil.disk_usage(path.parent).free
    if free < source_bytes // _SMALLEST_SHARE:
        raise OutputError(
            f"the disk is full: {free >> 20} MiB are free and the output may need {source_bytes >> 20} MiB",
            where=str(path.parent),
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says into an OutputError."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = "free some space, or write to another disk with -o" if full else "choose another place with -o"
        raise OutputError(f"cannot be written: {error.strerror or error}", where=str(path), hint=hint) from None


def _check(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        if _SHAPELESS in str(error):
            return
        raise PassError(
            f"the compiled model is not valid ONNX: {str(error).strip().splitlines()[0]}",
            hint="nothing was written; this is a defect of a pass, please report it",
        ) from None


def _exists(path: Path) -> OutputError:
    return OutputError("the file exists already", where=str(path), hint="use --overwrite, or another name with -o")
