"""Latency at batch 1 of every variant, two threads, CPU provider.

    python -m benchmarks.latency [MODEL ...]

Each variant lives in a process of its own, since the thread pools of sessions in one process disturb each other.
Rounds are interleaved, in rotating order, so that a slow phase of the machine hits every variant; quote the ratios.
"""

from __future__ import annotations

import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import save, table
from benchmarks.variants import FLOAT, build
from tests.zoo import MODELS
from tests.zoo.model import ZooModel

_ROUNDS = 15
_ROUND_SECONDS = 0.4


class Worker:
    """A process that holds one session and times it on request."""

    def __init__(self, model: Path, sample: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.latency", "--worker", str(model), str(sample)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._line()

    def round(self) -> list[float]:
        """Times of some runs, in ms."""
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        times = [float(x) for x in self._line().split()]
        time.sleep(0.05)
        return times

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


def serve(model: Path, sample: Path) -> None:
    """The other side of `Worker`."""
    from tests.zoo.model import runner

    run = runner(model)
    feed = pickle.loads(sample.read_bytes())
    for _ in range(3):
        run(feed)
    print("ready", flush=True)
    for _ in sys.stdin:
        times: list[float] = []
        end = time.perf_counter() + _ROUND_SECONDS
        while time.perf_counter() < end or len(times) < 3:
            start = time.perf_counter()
            run(feed)
            times.append((time.perf_counter() - start) * 1e3)
        print(*times, flush=True)


def measure(model: ZooModel) -> list[dict[str, Any]]:
    """One row for each variant: median of the medians of the rounds, and the ratio to float round by round."""
    with tempfile.TemporaryDirectory() as folder:
        files = build(model, Path(folder))
        sample = Path(folder) / "sample.pickle"
        sample.write_bytes(pickle.dumps(model.timing_sample()))
        workers: dict[str, Worker] = {}
        rows: list[dict[str, Any]] = []
        for variant, file in files.items():
            try:
                if isinstance(file, str):
                    raise RuntimeError(file)
                workers[variant] = Worker(file, sample)
            except RuntimeError as error:
                rows.append({"model": model.name, "variant": variant, "error": str(error)})
        medians: dict[str, list[float]] = {v: [] for v in workers}
        order = list(workers)
        for _ in range(_ROUNDS):
            for variant in order:
                medians[variant].append(statistics.median(workers[variant].round()))
            order = order[1:] + order[:1]
        for worker in workers.values():
            worker.close()
    for variant, times in medians.items():
        ratios = [a / b for a, b in zip(medians[FLOAT], times, strict=True)]
        rows.append(
            {
                "model": model.name,
                "variant": variant,
                "ms": statistics.median(times),
                "speedup": statistics.median(ratios),
                "speedup_low_high": [min(ratios), max(ratios)],
            }
        )
    return sorted(rows, key=lambda row: list(files).index(row["variant"]))


def main(names: list[str]) -> None:
    rows: list[dict[str, Any]] = []
    shapes = {}
    for name in names:
        model = MODELS[name]()
        print(model.title, flush=True)
        measured = measure(model)
        rows += measured
        shapes[name] = {k: list(v.shape) for k, v in model.timing_sample().items()}
        for row in measured:
            print("  ", row, flush=True)
    print(save("latency", rows, {"shapes": shapes, "threads": 2, "rounds": _ROUNDS}))
    cells = []
    for row in rows:
        title = MODELS[row["model"]].title if row["variant"] == FLOAT else ""
        if "error" in row:
            cells.append([title, row["variant"], "failed", ""])
        else:
            cells.append([title, row["variant"], f"{row['ms']:.3g}", f"{row['speedup']:.2f}"])
    print(table(["Model", "", "ms", "times as fast as float"], cells))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(sys.argv[1:] or list(MODELS))
