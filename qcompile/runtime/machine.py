"""What this machine computes with, in words: times that were taken on one are not those of another."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path

from qcompile.errors import TargetError
from qcompile.runtime.ahead import cores
from qcompile.runtime.gpu import find_gpu
from qcompile.runtime.providers import CPU, why_not_loaded


def device_name(provider: str) -> str:
    """The processor and how many cores this process may use, or the GPU.

    Raises:
        TargetError: the machine lacks what `provider` needs.
    """
    if provider == CPU:
        return f"{_processor()}, {cores()} cores"
    if missing := why_not_loaded(provider):
        raise TargetError(f"there is nothing to take times on: {provider} does not load, {missing}")
    gpu = find_gpu(0)
    return gpu.name if gpu else provider


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
