"""Calibration data: from whatever the user gives to a checked stream of samples.

    .npz file, .npy file, .safetensors file      one sample
    folder of one kind of them                   one sample per file, in the order of the paths
    folder of images with preprocessing.yaml     one sample per image
    .txt, .md or .jsonl file, folder of them     one sample per window of tokens
    module:function, path/to/file.py:function    the dicts that it yields
    a calibration table (.qcal)                  the held-out samples in it
    synthetic                                    made up from the model's inputs
    a list of dicts, or a function (Python)      as they are
    qcompile.Text (Python)                       a text with its tokenizer and windows

Samples are read one at a time; all of them are checked, and hashed, before any work starts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from qcompile.compiler.calibration_table import SUFFIX, CalibrationTable, TableSamples
from qcompile.compiler.context import Progress, Sample, SampleSource, SilentProgress
from qcompile.compiler.inputs import ModelInput, model_inputs, table_rows
from qcompile.errors import DataError, UsageError
from qcompile.frontends.samples.check import as_sample, check_sample
from qcompile.frontends.samples.files import IMAGES, READABLE, FileSamples, below, open_files
from qcompile.frontends.samples.function import FunctionSamples, import_function
from qcompile.frontends.samples.images import DECLARATION, open_images
from qcompile.frontends.samples.synthetic import SyntheticSamples
from qcompile.frontends.text import Text, is_text

if TYPE_CHECKING:
    import onnx_ir as ir

Calibration = str | Path | Text | Iterable[Sample] | Callable[[], Iterable[Sample]] | SampleSource

SYNTHETIC = "synthetic"


class RawSamples(Protocol):
    """Samples as they come, each with the words that name it in an error."""

    @property
    def description(self) -> str: ...

    @property
    def synthetic(self) -> bool: ...

    def __iter__(self) -> Iterator[tuple[str, object]]: ...


@dataclass(frozen=True)
class ListSamples:
    """Samples that the caller holds in memory, or any source that can be walked again."""

    samples: Iterable[Sample]
    description: str
    synthetic: bool = False

    def __iter__(self) -> Iterator[tuple[str, object]]:
        for number, sample in enumerate(self.samples, 1):
            yield f"sample {number}", sample


class CheckedSamples:
    """A SampleSource whose samples all fit the model. Making one reads, checks and hashes them all.

    Raises:
        DataError: a sample does not fit, or there is none.
    """

    def __init__(self, raw: RawSamples, inputs: Sequence[ModelInput], progress: Progress) -> None:
        self._raw = raw
        self.description, self.synthetic = raw.description, raw.synthetic
        digest, self._count = hashlib.sha256(), 0
        progress.start("Checking the samples", None)
        for where, item in raw:
            sample = as_sample(item, where)
            check_sample(sample, inputs, where)
            _hash(sample, digest)
            self._count += 1
            progress.advance()
        progress.finish()
        if not self._count:
            raise DataError("there are no samples", where=raw.description, hint="at least one is needed, 64 are good")
        self._digest = digest.hexdigest()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sample]:
        for where, item in self._raw:
            yield as_sample(item, where)

    def digest(self) -> str:
        return self._digest

    def at(self, positions: Collection[int]) -> list[Sample]:
        """The samples at `positions`, in order; files elsewhere are not read."""
        if isinstance(self._raw, FileSamples):
            chosen = replace(self._raw, files=[self._raw.files[i] for i in sorted(positions)])
            return [as_sample(item, where) for where, item in chosen]
        return [sample for i, sample in enumerate(self) if i in positions]


class WithoutHeldOut:
    """The samples of `source` but for those at the positions `left_out`."""

    def __init__(self, source: SampleSource, left_out: Collection[int]) -> None:
        self._source, self._left_out = source, frozenset(left_out)
        self.description, self.synthetic = source.description, source.synthetic

    def __len__(self) -> int:
        return len(self._source) - len(self._left_out)

    def __iter__(self) -> Iterator[Sample]:
        return (s for i, s in enumerate(self._source) if i not in self._left_out)

    def digest(self) -> str:
        return self._source.digest()


def open_samples(
    given: Calibration, graph: ir.Model, model: Path, *, seed: int = 0, progress: Progress | None = None
) -> CheckedSamples:
    """Check all samples of `given` against a model, whose file is `model`; see `open_calibration`."""
    return open_calibration(
        given,
        model_inputs(graph),
        seed=seed,
        rows=table_rows(graph),
        model=model,
        outputs=[str(value.name) for value in graph.graph.outputs],
        progress=progress,
    )


def open_calibration(
    given: Calibration,
    inputs: Sequence[ModelInput],
    *,
    seed: int = 0,
    rows: dict[str, int] | None = None,
    model: Path | None = None,
    outputs: Sequence[str] = (),
    progress: Progress | None = None,
) -> CheckedSamples:
    """Check all samples of `given` against the model's inputs.

    Args:
        rows: sizes of the tables that integer inputs index, for synthetic samples and for text.
        model, outputs: the model's file and the names of its outputs, for text.

    Raises:
        UsageError: nothing of a known kind was given.
        DataError: a sample cannot be read or does not fit the model.
    """
    text = as_text(given)
    if text is None:
        raw = _open(given, inputs, seed, rows or {})
    elif model is None:
        raise UsageError("text needs the model that reads it", where=str(text.path))
    else:
        from qcompile.frontends.samples.text import TextSamples

        raw = TextSamples(text, model, inputs, outputs, rows or {})
    return CheckedSamples(raw, inputs, progress or SilentProgress())


def as_text(given: Calibration) -> Text | None:
    """`given` as a text, if it is one: a file of that kind, or a folder with texts in it and no other data."""
    if isinstance(given, Text):
        return given
    if not isinstance(given, str | Path):
        return None
    path = Path(given)
    if path.is_dir() and ((path / DECLARATION).exists() or below(path, (*READABLE, *IMAGES))):
        return None
    return Text(path) if path.exists() and is_text(path) else None


def open_table(path: Path, inputs: Sequence[ModelInput]) -> tuple[TableSamples, list[Sample]]:
    """A calibration table in place of samples, and the held-out samples in it.

    Raises:
        DataError: it cannot be read, or its samples are those of another model.
    """
    if not path.is_file():
        raise UsageError("no such calibration table", where=str(path), hint="make one with `qcompile calibrate`")
    table = CalibrationTable.load(path)
    try:
        for sample in table.held_out:
            check_sample(sample, inputs, str(path))
    except DataError as error:
        raise DataError(
            f"the calibration table belongs to another model: {error.what}",
            where=str(path),
            hint=f"it was made for {table.model} with the recipe {table.recipe}",
        ) from None
    return TableSamples(table, path), table.held_out


def split_held_out(
    source: CheckedSamples, count: int = 8, keep_apart_from: int = 32
) -> tuple[SampleSource, list[Sample], bool]:
    """`count` evenly spaced samples for the numeric proofs.

    Returns:
        The calibration samples, the held-out samples, and whether they are kept apart: with fewer
        than `keep_apart_from` samples none can be spared and both are the same data.
    """
    total = len(source)
    positions = {(2 * i + 1) * total // (2 * count) for i in range(count)}
    held_out = source.at(positions)
    apart = total >= keep_apart_from
    return (WithoutHeldOut(source, positions) if apart else source), held_out, apart


def _open(given: Calibration, inputs: Sequence[ModelInput], seed: int, rows: dict[str, int]) -> RawSamples:
    if isinstance(given, str | Path):
        return _open_path(str(given), inputs, seed, rows)
    if callable(given):
        return FunctionSamples(given, getattr(given, "__qualname__", "a function"))
    if isinstance(given, Iterator):
        raise UsageError(
            "calibration is a generator, which can be walked only once",
            hint="give a list, or the function that makes the generator",
        )
    if isinstance(given, Iterable):
        description = getattr(given, "description", None) or "samples given in Python"
        return ListSamples(given, description, bool(getattr(given, "synthetic", False)))
    raise UsageError(
        f"calibration cannot be a {type(given).__name__}", hint="give a path, a list of dicts or a function"
    )


def _open_path(text: str, inputs: Sequence[ModelInput], seed: int, rows: dict[str, int]) -> RawSamples:
    path = Path(text)
    if text == SYNTHETIC:
        return SyntheticSamples(inputs, seed, rows)
    if path.is_dir():
        images = (path / DECLARATION).exists() or (below(path, IMAGES) and not below(path, (".npz", ".npy")))
        return open_images(path, inputs) if images else open_files(path, inputs)
    if path.suffix == SUFFIX and path.is_file():
        return ListSamples(CalibrationTable.load(path).held_out, f"held-out samples of {path.name}")
    if path.is_file():
        return open_images(path, inputs) if path.suffix in (".yaml", ".yml") else open_files(path, inputs)
    if ":" in text:
        return FunctionSamples(import_function(text), text)
    raise UsageError(
        "no such calibration data",
        where=text,
        hint="give a file, a folder, module:function, or the word synthetic",
    )


def _hash(sample: Sample, digest: Any) -> None:
    for name in sorted(sample):
        array = np.ascontiguousarray(sample[name])
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        if array.dtype == object:  # strings
            digest.update("\0".join(map(str, array.ravel())).encode())
        else:
            digest.update(array.view(np.uint8).data if array.ndim else array.tobytes())
