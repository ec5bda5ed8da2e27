"""Latency of several files beside each other, CPU provider.

Each file lives in a process of its own, since the thread pools of sessions in one process disturb each other.
Rounds are interleaved, in rotating order, so that a slow phase of the machine hits every file. The best run of
all rounds counts: on a shared machine whatever is slower is the neighbours' doing. With one thread it is the
processor time of the run, which waiting for a core does not lengthen; with two it is wall time. Quote the ratios.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tests.zoo.model import Sample

ROUNDS = 8
_ROUND_SECONDS = 0.3


def best_runs(files: Mapping[str, tuple[Path, Sample]], threads: int) -> dict[str, float]:
    """The best run of every file on its sample, in ms."""
    with tempfile.TemporaryDirectory() as folder:
        workers: dict[str, Worker] = {}
        try:
            for number, (name, (file, sample)) in enumerate(files.items()):
                feed = Path(folder) / f"{number}.pickle"
                feed.write_bytes(pickle.dumps(sample))
                workers[name] = Worker(file, feed, threads)
            best, order = dict.fromkeys(workers, float("inf")), list(workers)
            for _ in range(ROUNDS):
                for name in order:
                    best[name] = min(best[name], workers[name].round())
                order = order[1:] + order[:1]
        finally:
            for worker in workers.values():
                worker.close()
    return best


class Worker:
    """A process that holds one session and times it on request."""

    def __init__(self, model: Path, sample: Path, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.timing", str(model), str(sample), str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._line()

    def round(self) -> float:
        """The best of some runs, in ms."""
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        best = float(self._line())
        time.sleep(0.05)
        return best

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the session could not be made or ended early")
        return line


def _serve(model: Path, sample: Path, threads: int) -> None:
    """The other side of `Worker`."""
    from tests.zoo.model import runner

    run = runner(model, threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    feed = pickle.loads(sample.read_bytes())
    for _ in range(3):
        run(feed)
    print("ready", flush=True)
    for _ in sys.stdin:
        times: list[float] = []
        end = time.perf_counter() + _ROUND_SECONDS
        while time.perf_counter() < end or len(times) < 3:
            start = clock()
            run(feed)
            times.append((clock() - start) * 1e3)
        print(min(times), flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
