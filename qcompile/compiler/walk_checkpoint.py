"""What a sequential method found for each block, kept on disk so that a killed run goes on.

One folder for each walk, `OUTPUT.checkpoint.METHOD.DIGEST`, with one file for each block, written by rename.
The digest is of all that the results depend on: model, layers, plan, samples, options. A run that goes on takes the
results from there, applies them as it did, and computes only the activations again.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.passes import Pass
from qcompile.compiler.printer import print_model
from qcompile.errors import DataError

Arrays = Mapping[str, np.ndarray[Any, Any]]


class WalkCheckpoint:
    """The results of one walk; without a method, or without a checkpoint in `context`, they are not kept."""

    def __init__(self, model: ir.Model, context: CompileContext, method: Pass | None, layers: Collection[str]) -> None:
        self._folder: Path | None = None
        if method is None or context.checkpoint is None:
            return
        name = f"{context.checkpoint.name}.{method.name}.{_digest(model, context, method, layers)}"
        self._folder = context.checkpoint.with_name(name)
        if not context.resume and self._folder.exists():
            shutil.rmtree(self._folder)
        self._folder.mkdir(exist_ok=True)

    def once(self, index: int, work: Callable[[], Arrays]) -> Arrays:
        """The result for block `index`: from the checkpoint, or from `work`."""
        if self._folder is None:
            return work()
        path = self._folder / f"{index}.npz"
        if path.exists():
            return _load(path)
        found = work()
        unfinished = path.with_suffix(".tmp")
        with unfinished.open("wb") as file:
            np.savez(file, np.array(list(found), dtype=str), *found.values())
        unfinished.replace(path)
        return found


def walk_checkpoints(checkpoint: Path) -> list[Path]:
    """The folders of all walks of the run whose statistics are saved at `checkpoint`."""
    return [p for p in checkpoint.parent.glob(f"{checkpoint.name}.*.*") if p.is_dir()]


def remove_walk_checkpoints(checkpoint: Path) -> None:
    for folder in walk_checkpoints(checkpoint):
        shutil.rmtree(folder)


def _load(path: Path) -> Arrays:
    try:
        with np.load(path) as stored:
            return {str(name): stored[f"arr_{i + 1}"] for i, name in enumerate(stored["arr_0"])}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        raise DataError("the checkpoint is damaged", where=str(path), hint="start without --resume") from None


def _digest(model: ir.Model, context: CompileContext, method: Pass, layers: Collection[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in _parts(model, context, method, layers):
        digest.update(part)
    return digest.hexdigest()


def _parts(model: ir.Model, context: CompileContext, method: Pass, layers: Collection[str]) -> Iterator[bytes]:
    plan = context.plan
    data = context.calibration.digest() if context.calibration is not None else ""
    passes = [f"{p.name} {p.model_dump_json()}" for p in (method, *context.following)]
    yield repr((context.target.name, context.seed, data, passes, plan.units, sorted(layers))).encode()
    yield print_model(model).encode()
    for name, params in plan.tensors.items():
        yield name.encode() + params.scale.tobytes() + params.zero_point.tobytes()
    for key, weight in plan.weights.items():
        yield repr(key).encode() + weight.params.scale.tobytes() + weight.codes.tobytes()
