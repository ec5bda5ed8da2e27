"""Time on the device of several contestants, in turns.

A contestant is a function that enqueues some calls, each on a set of tensors of its own, on the current stream. A
pause of the device goes ahead of each turn, so that the whole turn is enqueued before it starts and no wait for the
host counts. Events stand around the turn. The median of all turns counts; the spread is the distance of the
quartiles, relative to the median.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

_TURNS = 15
_PAUSE_CYCLES = 600_000
"""About 0.3 ms."""


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call, and the relative distance of the quartiles."""

    microseconds: float
    spread: float

    @classmethod
    def of(cls, turns: Sequence[float]) -> Timing:
        """The timing of turns, in microseconds of one call each."""
        low, middle, high = quantiles(turns, n=4)
        return cls(median(turns), (high - low) / middle)


def interleaved(contestants: Mapping[str, Callable[[], None]], calls: int) -> dict[str, Timing]:
    """Times of all contestants, each of which makes `calls` calls a turn."""
    torch = _torch()
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for enqueue in contestants.values():
        enqueue()
    torch.cuda.synchronize()
    order = list(contestants)
    for _ in range(_TURNS):
        for name in order:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(_PAUSE_CYCLES)
            start.record()
            contestants[name]()
            end.record()
            end.synchronize()
            found[name].append(start.elapsed_time(end) * 1e3 / calls)
        order = order[1:] + order[:1]
    return {name: Timing.of(turns) for name, turns in found.items()}


def captured(call: Callable[[int], Any], calls: int) -> Callable[[], None]:
    """`call(0)` ... `call(calls - 1)` as a CUDA graph."""
    torch = _torch()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(calls):
            call(i)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    kept = []
    with torch.cuda.graph(graph):
        for i in range(calls):
            kept.append(call(i))

    def replay(graph: Any = graph, kept: Any = kept) -> None:
        graph.replay()

    return replay


def own_stream() -> None:
    """Make another stream than the default one the current one: ONNX Runtime captures on it, which that one cannot."""
    torch = _torch()
    torch.cuda.set_stream(torch.cuda.Stream())


def l2_bytes() -> int:
    """Size of the device's L2 cache."""
    return int(_torch().cuda.get_device_properties(0).L2_cache_size)


def _torch() -> Any:
    """PyTorch, whose functions on streams have no types."""
    import torch

    return torch
