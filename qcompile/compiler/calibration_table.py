"""Statistics in a file: calibration once, compiling many times; and the checkpoint of a run that is under way.

A .npz archive with a JSON entry `about` and arrays: the vectors of every run, and the held-out samples, so
that compiling from a table proves its result as from samples. It is written whole, by rename.

Errors: DataError where the file is damaged; OutputError where it cannot be written.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import qcompile
from qcompile.compiler.artifact import writing
from qcompile.compiler.context import Sample
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.statistics import RANGE, Clip, Statistic, StatisticsTable
from qcompile.errors import DataError

SUFFIX = ".qcal"

_FORMAT = 1

Wish = tuple[Statistic, str]
"""A statistic of a tensor."""


@dataclass
class Run:
    """What one step `calibrate` saw of the model as it then was.

    Attributes:
        spec: what the clips were chosen for, in words.
        clips: by tensor.
    """

    statistics: StatisticsTable
    spec: str = ""
    clips: dict[str, Clip] = field(default_factory=dict)

    def choose(self, spec: QuantSpec) -> None:
        """Let the calibrator of the statistics choose the clips, to be shown; other formats may choose anew."""
        self.spec = str(spec)
        names = self.statistics.vectors.get(RANGE.kind, {})
        self.clips = {name: clip for name in names if (clip := self.statistics.clip_of(name, spec))}


@dataclass
class CalibrationTable:
    """Statistics of one data set.

    Attributes:
        model: name of the model's file.
        recipe: name of the recipe.
        description, digest, samples, synthetic: of the data.
        held_out: samples for the proofs.
        runs: by the identity of the prepared model; a recipe may calibrate more than once.
    """

    model: str = ""
    recipe: str = ""
    description: str = ""
    digest: str = ""
    samples: int = 0
    synthetic: bool = False
    held_out: list[Sample] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)

    def nearest(
        self, identity: str, needed: Collection[tuple[Statistic, str]]
    ) -> tuple[Run, list[tuple[Statistic, str]]]:
        """Of the runs on the model `identity`, the one that lacks least of `needed`, and what it lacks.

        Raises:
            KeyError: there is no run on that model.
        """
        found = [
            (run, [(s, t) for s, t in needed if run.statistics.vector_of(s, t) is None])
            for key, run in self.runs.items()
            if key.startswith(identity)
        ]
        if not found:
            raise KeyError(identity)
        return min(found, key=lambda pair: len(pair[1]))

    def save(self, path: Path) -> None:
        """Write the table, replacing an older one at once."""
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        about: dict[str, Any] = {
            "format": _FORMAT,
            "qcompile": qcompile.__version__,
            "model": self.model,
            "recipe": self.recipe,
            "data": [self.description, self.digest, self.samples, self.synthetic],
            "held out": len(self.held_out),
            "runs": [],
        }
        for i, sample in enumerate(self.held_out):
            arrays |= {f"sample {i} {name}": _storable(array) for name, array in sample.items()}
        for i, (identity, run) in enumerate(self.runs.items()):
            blocks: list[tuple[str, list[str]]] = []
            for kind, vectors in run.statistics.vectors.items():
                for length in sorted({v.size for v in vectors.values()}):
                    tensors = [t for t, v in vectors.items() if v.size == length]
                    arrays[f"run {i} {len(blocks)}"] = np.array([vectors[t] for t in tensors])
                    blocks.append((kind, tensors))
            clips = {tensor: [c.low, c.high, c.method] for tensor, c in run.clips.items()}
            about["runs"].append([identity, run.statistics.samples, blocks, run.spec, clips])
        temporary = _temporary(path)
        with writing(path):
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, about=np.array(json.dumps(about, sort_keys=True)), **arrays)
            temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> CalibrationTable:
        """Read a table.

        Raises:
            DataError: the file is no table, or a damaged one.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls._read(arrays)
        except (OSError, EOFError, TypeError, ValueError, KeyError, IndexError, zipfile.BadZipFile):
            raise DataError("the statistics in the file cannot be read: it is damaged", where=str(path)) from None

    @classmethod
    def _read(cls, arrays: Mapping[str, np.ndarray[Any, Any]]) -> CalibrationTable:
        about = json.loads(str(arrays["about"]))
        if about["format"] != _FORMAT:
            raise ValueError(about["format"])
        table = cls(about["model"], about["recipe"], *about["data"])
        table.held_out = [{} for _ in range(about["held out"])]
        for key in arrays:
            if key.startswith("sample "):
                _, number, name = key.split(" ", 2)
                stored = arrays[key]
                table.held_out[int(number)] = {
                    **table.held_out[int(number)],
                    name: stored.astype(object) if stored.dtype.kind == "U" else stored,
                }
        for i, (identity, samples, blocks, spec, clips) in enumerate(about["runs"]):
            statistics = StatisticsTable(samples)
            for j, (kind, tensors) in enumerate(blocks):
                statistics.update(kind, dict(zip(tensors, arrays[f"run {i} {j}"], strict=True)))
            table.runs[identity] = Run(statistics, spec, {t: Clip(*clip) for t, clip in clips.items()})
        return table


class TableSamples:
    """In place of samples where statistics come from a table: what is known of them, but not themselves."""

    def __init__(self, table: CalibrationTable, path: Path) -> None:
        self.table, self.path = table, path
        self.description = f"calibration table {path.name} ({table.description})"
        self.synthetic = table.synthetic

    def __len__(self) -> int:
        return self.table.samples

    def __iter__(self) -> Iterator[Sample]:
        raise DataError(
            "a step of the recipe reads the samples themselves, and a calibration table holds statistics only",
            where=str(self.path),
            hint="give the samples with --calib DATA, or take a recipe that needs none",
        )

    def digest(self) -> str:
        return self.table.digest


def remove_checkpoint(path: Path) -> None:
    """Remove a table that served as checkpoint, and what a killed process left of a newer one."""
    path.unlink(missing_ok=True)
    _temporary(path).unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _storable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Strings are Python objects to numpy, which may not go into a file."""
    return array.astype(str) if array.dtype.kind == "O" else array
