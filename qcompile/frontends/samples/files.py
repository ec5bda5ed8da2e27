"""Samples in files: one file is one sample, read when its turn comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.compiler.inputs import ModelInput
from qcompile.errors import DataError, UsageError
from qcompile.runtime.ahead import ahead

Reader = Callable[[Path], dict[str, np.ndarray[Any, Any]]]

_READERS_AT_ONCE = 2

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True)
class FileSamples:
    """A list of files, one sample each; the next ones are read while one is used."""

    files: Sequence[Path]
    read: Reader
    description: str
    synthetic: bool = False

    def __iter__(self) -> Iterator[tuple[str, object]]:
        yield from zip(map(str, self.files), ahead(self.read, self.files, _READERS_AT_ONCE), strict=True)


def open_files(path: Path, inputs: Sequence[ModelInput]) -> FileSamples:
    """Samples from one file, or from every file below a folder in the order of their paths.

    Known: .npz (one array per input), .npy (models with one input), .safetensors (one tensor per input).

    Raises:
        UsageError: an unknown kind of file, or a folder that mixes kinds or holds none.
    """
    files = [path] if path.is_file() else below(path, READABLE)
    kinds = sorted({f.suffix.lower() for f in files})
    if len(kinds) != 1 or kinds[0] not in _READERS:
        known = ", ".join(READABLE)
        if not path.is_file() and len(kinds) > 1:
            raise UsageError(
                f"the folder mixes {' and '.join(kinds)} files", where=str(path), hint="keep one kind in it"
            )
        raise UsageError(
            "no calibration data was found here" if not kinds else f"'{path.suffix}' is not a known kind of data",
            where=str(path),
            hint=f"known: {known}, a folder of them, a folder of images, a text (.txt, .jsonl), or module:function",
        )
    [kind] = kinds
    count = f"one {kind} file" if len(files) == 1 else f"{len(files)} {kind} files"
    return FileSamples(files, _READERS[kind](inputs), count)


def below(folder: Path, suffixes: object) -> list[Path]:
    """Files of the given suffixes anywhere below `folder`, hidden ones left out, sorted by path."""
    found = []
    for file in folder.rglob("*"):
        relative = file.relative_to(folder)
        if file.suffix.lower() in suffixes and file.is_file() and not any(p.startswith(".") for p in relative.parts):  # type: ignore[operator]
            found.append(file)
    return sorted(found, key=lambda f: f.relative_to(folder).parts)


def _npz(inputs: Sequence[ModelInput]) -> Reader:
    def read(file: Path) -> dict[str, np.ndarray[Any, Any]]:
        with _faults(file), np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    return read


def _npy(inputs: Sequence[ModelInput]) -> Reader:
    name = only_input(inputs, ".npy files hold one array each")

    def read(file: Path) -> dict[str, np.ndarray[Any, Any]]:
        with _faults(file):
            return {name: np.load(file, allow_pickle=False)}

    return read


def _safetensors(inputs: Sequence[ModelInput]) -> Reader:
    try:
        from safetensors.numpy import load_file
    except ImportError:
        raise UsageError(
            "reading .safetensors needs the package safetensors", hint="pip install 'qcompile[safetensors]'"
        ) from None

    def read(file: Path) -> dict[str, np.ndarray[Any, Any]]:
        with _faults(file):
            return dict(load_file(file))

    return read


_READERS: dict[str, Callable[[Sequence[ModelInput]], Reader]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".safetensors": _safetensors,
}
READABLE = tuple(_READERS)


def only_input(inputs: Sequence[ModelInput], why: str) -> str:
    """The name of the single input that must be given.

    Raises:
        UsageError: the model has several.
    """
    required = [i.name for i in inputs if i.required]
    if len(required) != 1:
        raise UsageError(
            f"{why}, but the model has {len(required)} inputs: {', '.join(required)}",
            hint="use .npz files with one array for each input",
        )
    return required[0]


class _faults:
    """Turns whatever a damaged file raises into a DataError that names the file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, Exception):
            return
        pickled = "allow_pickle" in str(error)
        raise DataError(
            "the file holds Python objects, not numbers" if pickled else f"the file cannot be read: {error}",
            where=str(self.file),
            hint="save plain arrays" if pickled else "is it complete?",
        ) from None
