"""Time models against each other on one provider, in turns.

A slow phase of the machine hits every model alike, and turns can be compared in pairs. How a turn is timed depends
on where the model runs: `on_host`, `on_device`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from qcompile.runtime.kv_cache import CacheCodes
from qcompile.runtime.providers import CPU

Array = np.ndarray[Any, Any]
Sample = Mapping[str, Array]

_ROUNDS = (3, 200)  # fewest and most turns of each model
_MOST_COPIES = 64  # of an input


@dataclass(frozen=True)
class Timing:
    """What each of a model's turns says of one run, in ms, in order."""

    turns: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.turns))

    @property
    def spread(self) -> float:
        """The distance of the quartiles, relative to the median."""
        low, high = np.percentile(self.turns, (25, 75))
        return float((high - low) / self.median)


class Place(Protocol):
    """Where models run."""

    def open(self, model: Path) -> Any:
        """A session of `model`."""

    def runner(self, session: Any, sample: Sample) -> Callable[[], None]:
        """What runs the session once, each time on another copy of `sample`; warmed up."""

    def turn(self, run: Callable[[], None]) -> float:
        """The time of one of several runs, in ms."""


class Contest:
    """Models that take turns, each opened once.

    Args:
        models: paths by name.
        threads: threads of each session on the CPU, 0 for ONNX Runtime's choice.
        cuda_graphs: whether sessions on a GPU replay CUDA graphs.

    Raises:
        TargetError: the provider does not load on this machine.
        ModelError: ONNX Runtime refuses a model.
    """

    def __init__(
        self, models: Mapping[str, Path], provider: str = CPU, threads: int = 0, cuda_graphs: bool = False
    ) -> None:
        self._place = place(provider, threads, cuda_graphs)
        self._models = {name: (self._place.open(path), CacheCodes.of(path)) for name, path in models.items()}

    def timings(self, sample: Sample, seconds: float = 2.0) -> dict[str, Timing]:
        """Time all models on the same sample.

        Args:
            sample: by the names of the inputs, which all models share.
            seconds: wall time of the whole measurement; at least three turns are taken.

        Returns:
            One Timing for each name; all have the same number of turns.
        """
        own = {name: codes.encode(sample) for name, (_, codes) in self._models.items()}
        return self.each(own, seconds)

    def each(self, samples: Mapping[str, Sample], seconds: float) -> dict[str, Timing]:
        """As `timings`, with a sample for each model."""
        runners = {name: self._place.runner(self._models[name][0], sample) for name, sample in samples.items()}
        return in_turns({name: partial(self._place.turn, run) for name, run in runners.items()}, seconds)


def in_turns(turn: Mapping[str, Callable[[], float]], seconds: float) -> dict[str, Timing]:
    """Call the functions, each of which times one turn, round after round; every round begins with another one."""
    found: dict[str, list[float]] = {name: [] for name in turn}
    order, end = list(turn), perf_counter() + seconds
    for done in range(_ROUNDS[1]):
        if done >= _ROUNDS[0] and perf_counter() >= end:
            break
        for name in order:
            found[name].append(turn[name]())
        order = order[1:] + order[:1]
    return {name: Timing(tuple(times)) for name, times in found.items()}


def interleaved(
    models: Mapping[str, Path],
    sample: Sample,
    provider: str = CPU,
    seconds: float = 2.0,
    threads: int = 0,
) -> dict[str, Timing]:
    """Time `models` on one sample; see `Contest`."""
    return Contest(models, provider, threads).timings(sample, seconds)


def ratio(slow: Timing, fast: Timing) -> tuple[float, float]:
    """How many times faster `fast` is (ratio of medians), and the spread of that over the turns:
    (90th - 10th percentile of the turns' ratios) / their median."""
    each = np.array(slow.turns) / np.array(fast.turns)
    low, middle, high = np.percentile(each, (10, 50, 90))
    return slow.median / fast.median, float((high - low) / middle)


def place(provider: str, threads: int = 0, cuda_graphs: bool = False) -> Place:
    """Where models of `provider` run."""
    if provider == CPU:
        from qcompile.runtime.benchmark.on_host import Host

        return Host(threads)
    from qcompile.runtime.benchmark.on_device import Device

    return Device(provider, cuda_graphs)


def copies(nbytes: int, cache: int) -> int:
    """How many copies of an input of `nbytes` take turns, so that none is still in a cache of `cache` bytes."""
    return min(_MOST_COPIES, max(1, -(-2 * cache // max(nbytes, 1))))
