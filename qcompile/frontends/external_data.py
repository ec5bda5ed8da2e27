"""External tensor data: it must be there, be large enough, and lie in the model's own folder.

A model file is untrusted input: a location such as `../../etc/passwd` would otherwise be copied
into the artifact. Links are followed before the check; the folder of the file that the model path
itself links to counts as the model's folder too, as download caches keep blobs behind links.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from qcompile.errors import ModelError
from qcompile.runtime.external_tensors import stored_bytes, tensors

if TYPE_CHECKING:
    import onnx


def check_external_data(proto: onnx.ModelProto, path: Path) -> None:
    """Check every external tensor of the model at `path`.

    Raises:
        ModelError: a location leaves the folder, a file is missing or too short; names the tensor.
    """
    for tensor in tensors(proto):
        if tensor.data_location == tensor.EXTERNAL:
            _check(tensor, path)


def resolve_external_data(proto: onnx.ModelProto, path: Path) -> None:
    """Make the checked locations absolute, links followed: tensors can then be read from anywhere."""
    for tensor in tensors(proto):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str((path.parent / entry.value).resolve())


def external_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of all external tensors."""
    return sum(stored_bytes(t) for t in tensors(proto) if t.data_location == t.EXTERNAL)


def _check(tensor: onnx.TensorProto, path: Path) -> None:
    info = {entry.key: entry.value for entry in tensor.external_data}
    location = info.get("location", "")
    where = f"{path}, tensor '{tensor.name}'"
    _check_location(location, path, where)
    file = path.parent / location
    if not file.is_file():
        raise ModelError(
            f"the external data file '{location}' is missing",
            where=where,
            hint=f"put it into {path.parent}, beside the model",
        )
    try:
        offset, length = int(info.get("offset") or 0), int(info.get("length") or 0)
    except ValueError:
        raise ModelError("the offset or length of its external data is not a number", where=where) from None
    size = file.stat().st_size
    needed = length or stored_bytes(tensor)
    if offset < 0 or length < 0 or offset + needed > size:
        raise ModelError(
            f"the external data file '{location}' is truncated: "
            f"bytes {offset} to {offset + needed} are wanted, it has {size}",
            where=where,
            hint="export or download it again",
        )
    if length and length < stored_bytes(tensor):
        raise ModelError(
            f"its external data has {length} bytes, but its shape and type need {stored_bytes(tensor)}", where=where
        )


def _check_location(location: str, path: Path, where: str) -> None:
    leaves = (
        not location
        or PurePosixPath(location).is_absolute()
        or bool(PureWindowsPath(location).anchor)
        or ".." in PureWindowsPath(location).parts
    )
    homes = {path.parent.resolve(), path.resolve().parent}
    target = (path.parent / location).resolve()
    if leaves or not any(target.is_relative_to(home) for home in homes):
        raise ModelError(
            f"its external data path '{location}' leaves the model's folder",
            where=where,
            hint="external data must lie beside the model; do not trust this file if you did not make it",
        )
