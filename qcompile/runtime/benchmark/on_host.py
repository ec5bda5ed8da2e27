"""Turns on the CPU.

Live sessions in one process disturb each other: after a run a session's threads keep spinning for some
milliseconds and take the cores from the session that runs next. On two cores, float EfficientNet-Lite0
against int8, alternating without care gave ratios of medians from 1.3 to 3.7 where each model alone
in its process gave 2.14. Processes that take turns did no better, since the threads of the one that waits
spin as well; with spinning switched off the ratio was steady but 6 % too small, since every run
then pays for waking the threads. What gives 2.1 again and again, with the options that a user
runs: let the threads go to sleep before each turn, then run a short burst without its first runs.
The best run of the burst counts: whatever is slower is the doing of the machine's other work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from qcompile.runtime.benchmark.profile import feed_of
from qcompile.runtime.benchmark.turns import Sample, copies
from qcompile.runtime.providers import CPU, open_session

_SLEEP = 0.03  # seconds until the threads of the session before have stopped spinning
_DISCARDED, _COUNTED = 2, 5  # runs of a burst
_LONGEST_BURST = 0.2  # seconds; a slow model has shorter bursts, since its own threads never rest within a run

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_L2 = 2 << 20


class Host:
    """The CPU provider of ONNX Runtime.

    Args:
        threads: of each session, 0 for ONNX Runtime's choice.
    """

    def __init__(self, threads: int = 0) -> None:
        self._threads = threads

    def open(self, model: Path) -> Any:
        """An `onnxruntime.InferenceSession`."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = self._threads
        return open_session(model, options, CPU, {})

    def runner(self, session: Any, sample: Sample) -> Callable[[], None]:
        """One run, on copies of the inputs in turn; the first is done."""
        feed = feed_of(session, sample)
        others = copies(sum(a.nbytes for a in feed.values()), l2_bytes()) - 1
        feeds = [feed, *({name: array.copy() for name, array in feed.items()} for _ in range(others))]
        session.run(None, feed)
        return partial(_next, session, cycle(feeds))

    def turn(self, run: Callable[[], None]) -> float:
        """The best run of a burst, in ms of wall time."""
        time.sleep(_SLEEP)
        best, begin = float("inf"), time.perf_counter()
        for i in range(_DISCARDED + _COUNTED):
            start = time.perf_counter()
            run()
            end = time.perf_counter()
            late = end - begin > _LONGEST_BURST
            if i >= _DISCARDED or late:
                best = min(best, end - start)
            if late:
                break
        return best * 1000


def _next(session: Any, feeds: Iterator[Sample]) -> None:
    session.run(None, next(feeds))


def l2_bytes() -> int:
    """Size of a core's L2 cache; 2 MB where the system does not tell."""
    for cache in sorted(_CACHES.glob("index*")):
        try:
            if (cache / "level").read_text().strip() == "2":
                return int((cache / "size").read_text().strip().removesuffix("K")) << 10
        except (OSError, ValueError):
            break
    return _USUAL_L2
