"""Time models against each other on one provider, and say which nodes the time goes to.

Live sessions in one process disturb each other: after a run a session's threads keep spinning for some
milliseconds and take the cores from the session that runs next. On two cores, float EfficientNet-Lite0
against int8, alternating without care gave ratios of medians from 1.3 to 3.7 where each model alone
in its process gave 2.14. Processes that take turns did no better, since the threads of the one that waits
spin as well; with spinning switched off the ratio was steady but 6 % too small, since every run
then pays for waking the threads. What gives 2.1 again and again, with the options that a user
runs: let the threads go to sleep before each turn, then run a short burst without its first runs.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.runtime.kv_cache import CacheCodes
from qcompile.runtime.providers import open_session, provider_options

Array = np.ndarray[Any, Any]

_SLEEP = 0.03  # seconds until the threads of the session before have stopped spinning
_DISCARDED, _COUNTED = 2, 5  # runs of a burst
_LONGEST_BURST = 0.2  # seconds; a slow model has shorter bursts, since its own threads never rest within a run
_ROUNDS = (3, 200)  # fewest and most turns of each model


@dataclass(frozen=True)
class Timing:
    """The best run of each of a model's turns, in ms, in order."""

    turns: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.turns))


def interleaved(
    models: Mapping[str, Path],
    sample: Mapping[str, Array],
    provider: str = "CPUExecutionProvider",
    seconds: float = 2.0,
    threads: int = 0,
) -> dict[str, Timing]:
    """Time `models` in turns on the same sample.

    Args:
        models: paths by name, all with inputs named as in `sample`.
        seconds: wall time of the whole measurement without the loading; at least three turns are taken.
        threads: threads of each session, 0 for ONNX Runtime's choice.

    Returns:
        One Timing for each name; all have the same number of turns, so turns can be compared pairwise.

    Raises:
        TargetError: the provider does not load on this machine.
        ModelError: ONNX Runtime refuses a model.
    """
    sessions = {name: _session(model, provider, threads) for name, model in models.items()}
    feeds = {name: _feed(session, CacheCodes.of(models[name]).encode(sample)) for name, session in sessions.items()}
    for name, session in sessions.items():
        session.run(None, feeds[name])
    turns: dict[str, list[float]] = {name: [] for name in models}
    end = time.perf_counter() + seconds
    for done in range(_ROUNDS[1]):
        if done >= _ROUNDS[0] and time.perf_counter() >= end:
            break
        for name, session in sessions.items():
            turns[name].append(_burst(session, feeds[name]))
    return {name: Timing(tuple(t)) for name, t in turns.items()}


def ratio(slow: Timing, fast: Timing) -> tuple[float, float]:
    """How many times faster `fast` is (ratio of medians), and the spread of that over the turns:
    (90th - 10th percentile of the turns' ratios) / their median."""
    each = np.array(slow.turns) / np.array(fast.turns)
    low, middle, high = np.percentile(each, (10, 50, 90))
    return slow.median / fast.median, float((high - low) / middle)


def node_times(
    model: Path, sample: Mapping[str, Array], provider: str = "CPUExecutionProvider", runs: int = 10
) -> list[tuple[str, str, float]]:
    """Where the time goes: (node of the optimized graph, its operator, median ms), slowest first."""
    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        session = _session(model, provider, 0, profile=str(Path(folder) / "profile"))
        feed = _feed(session, CacheCodes.of(model).encode(sample))
        for _ in range(runs + 1):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            times[name, event["args"]["op_name"]].append(event["dur"] / 1000)
    medians = [(name, op_type, float(np.median(t))) for (name, op_type), t in times.items()]
    return sorted(medians, key=lambda row: -row[2])


def _burst(session: Any, feed: Mapping[str, Array]) -> float:
    time.sleep(_SLEEP)
    best, begin = float("inf"), time.perf_counter()
    for i in range(_DISCARDED + _COUNTED):
        start = time.perf_counter()
        session.run(None, feed)
        end = time.perf_counter()
        late = end - begin > _LONGEST_BURST
        if i >= _DISCARDED or late:
            best = min(best, end - start)
        if late:
            break
    return best * 1000


def _session(model: Path, provider: str, threads: int, profile: str = "") -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return open_session(model, options, provider, provider_options(provider, 0, None))


def _feed(session: Any, sample: Mapping[str, Array]) -> dict[str, Array]:
    names = {i.name for i in session.get_inputs()}
    return {k: v for k, v in sample.items() if k in names}
