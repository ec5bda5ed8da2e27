"""Activations of many samples: on the device and in memory up to a budget, beyond it in files that vanish with the
store."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from qcompile.compiler.scratch import scratch_folder
from qcompile.runtime.device import Device, fetch

Array = Any  # numpy.ndarray or torch.Tensor


class ActivationStore:
    """Arrays by value name and sample number.

    Args:
        budget: bytes held in memory; what comes when they are used up goes to a temporary folder.
        device: where arrays are wanted.
        on_device: bytes held there, where it is not the CPU; what comes when they are used up goes to memory.
    """

    def __init__(self, budget: int, device: Device = Device.CPU, on_device: int = 0) -> None:
        self._left, self._left_on_device = budget, on_device
        self._device = device
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
        self._held.setdefault(name, {})[sample] = self._kept(array)

    def get(self, name: str, sample: int) -> Array:
        held = self._held[name][sample]
        return self._device.put(np.load(held) if isinstance(held, Path) else held)

    def drop(self, name: str) -> None:
        """Forget a value for all samples; its memory is free again."""
        for held in self._held.pop(name, {}).values():
            if isinstance(held, Path):
                held.unlink()
            elif isinstance(held, np.ndarray):
                self._left += held.nbytes
            else:
                self._left_on_device += held.nbytes

    def _kept(self, array: Array) -> Array | Path:
        """The array where there is room for it."""
        array = self._device.put(array)
        if not isinstance(array, np.ndarray):
            if array.nbytes <= self._left_on_device:
                self._left_on_device -= array.nbytes
                return array.clone()  # of its own: a session's output would keep all the memory of that session
            array = fetch(array)
        if array.nbytes <= self._left:
            self._left -= array.nbytes
            return array
        return self._write(array)

    def _write(self, array: Array) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="qcompile-activations-", dir=scratch_folder())
        self._files += 1
        path = Path(self._folder.name) / f"{self._files}.npy"
        np.save(path, array)
        return path
