"""How full a GPU's memory is, by the CUDA runtime that ONNX Runtime uses."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from qcompile.runtime.gpu import cuda_of_runtime
from qcompile.runtime.libraries import find_libraries

_MIB = 1 << 20


@dataclass(frozen=True)
class DeviceMemory:
    """A GPU's memory, in bytes.

    Attributes:
        used: by all sessions and processes.
        opening: what opening the session took: weights, libraries, the first memory of its arena.
        limit: of the session's arena, None for none.
    """

    device: int
    used: int
    total: int
    opening: int
    limit: int | None

    def __str__(self) -> str:
        limit = f", its arena may take {self.limit / _MIB:.1f}" if self.limit is not None else ""
        return (
            f"{self.used / _MIB:.0f} of {self.total / _MIB:.0f} MiB of GPU {self.device} in use by everybody; "
            f"opening the session took {max(self.opening, 0) / _MIB:.0f}{limit}"
        )


def used_and_total(device: int) -> tuple[int, int] | None:
    """Bytes of the GPU's memory that are in use, by everybody, and all of them; None where CUDA does not answer."""
    runtime = _runtime()
    if runtime is None:
        return None
    before = ctypes.c_int()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if runtime.cudaGetDevice(ctypes.byref(before)) or runtime.cudaSetDevice(device):
        runtime.cudaGetLastError()  # or the next call of somebody else's is blamed
        return None
    failed = runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    runtime.cudaSetDevice(before)  # the thread's current device is the user's
    return None if failed else (total.value - free.value, total.value)


def _runtime() -> ctypes.CDLL | None:
    find_libraries()
    try:
        return ctypes.CDLL(f"libcudart.so.{cuda_of_runtime()}")
    except OSError:
        return None
