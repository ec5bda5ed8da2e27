"""Activations of many samples: in memory up to a budget, beyond it in files that vanish with the store."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from qcompile.compiler.scratch import scratch_folder

Array = np.ndarray[Any, Any]


class ActivationStore:
    """Arrays by value name and sample number.

    Args:
        budget: bytes held in memory; what comes when they are used up goes to a temporary folder.
    """

    def __init__(self, budget: int) -> None:
        self._left = budget
        self._held: dict[str, dict[int, Array | Path]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def __enter__(self) -> ActivationStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def put(self, name: str, sample: int, array: Array) -> None:
        samples = self._held.setdefault(name, {})
        if array.nbytes <= self._left:
            self._left -= array.nbytes
            samples[sample] = array
        else:
            samples[sample] = self._write(array)

    def get(self, name: str, sample: int) -> Array:
        held = self._held[name][sample]
        return np.load(held) if isinstance(held, Path) else held

    def drop(self, name: str) -> None:
        """Forget a value for all samples; its memory is free again."""
        for held in self._held.pop(name, {}).values():
            if isinstance(held, Path):
                held.unlink()
            else:
                self._left += held.nbytes

    def _write(self, array: Array) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="qcompile-activations-", dir=scratch_folder())
        self._files += 1
        path = Path(self._folder.name) / f"{self._files}.npy"
        np.save(path, array)
        return path
