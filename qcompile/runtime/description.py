"""What a session says of itself: data, and the lines in which it is printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcompile.runtime.adapters import Adapters
from qcompile.runtime.device_memory import DeviceMemory
from qcompile.runtime.engines import EngineCache
from qcompile.runtime.ops.kernels import Kernels
from qcompile.runtime.ports import Port


@dataclass(frozen=True)
class State:
    """What an execution has to say of itself; each entry prints as one line.

    Attributes:
        buckets: shapes that are captured as CUDA graphs, and why others are not.
    """

    buckets: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Description:
    """A session at one moment.

    Attributes:
        model: name of the file.
        why: why this provider, and why not a better one.
        kernels: how operators of domain `qcompile` run.
        compiled: recipe and target, None for a model that qcompile did not make.
        state: how it is run.
        memory: of the GPU that it runs on, None on the CPU.
        engines: where its engines are kept, None for a provider that builds none.
        adapters: that runs may ask for, None where there are none.
    """

    model: str
    provider: str
    why: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    kernels: Kernels
    compiled: tuple[str, str] | None
    state: State
    memory: DeviceMemory | None
    engines: EngineCache | None
    adapters: Adapters | None = None

    def __str__(self) -> str:
        lines = [f"{self.model} on {self.provider} ({self.why})"]
        lines += [f"  in   {port}" for port in self.inputs]
        lines += [f"  out  {port}" for port in self.outputs]
        if self.kernels.operators:
            lines.append(f"  {self.kernels}")
        lines += [f"  {entry}" for entry in self.state.buckets]
        lines += [f"  {entry}" for entry in (self.adapters, self.engines, self.memory) if entry is not None]
        if self.compiled:
            lines.append("  compiled by recipe {} for {}".format(*self.compiled))
        return "\n".join(lines)
