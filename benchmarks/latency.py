"""Latency at batch 1 of every variant, CPU provider, with one thread and with two.

    python -m benchmarks.latency [MODEL ...]

Each variant lives in a process of its own, since the thread pools of sessions in one process disturb each other.
Rounds are interleaved, in rotating order, so that a slow phase of the machine hits every variant. The best run of
all rounds counts: on a shared machine whatever is slower is the neighbours' doing. With one thread it is the
processor time of the run, which waiting for a core does not lengthen; with two it is wall time. Quote the ratios.
"""

from __future__ import annotations

import pickle
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

_ROUNDS = 12
_ROUND_SECONDS = 0.3
_THREADS = (1, 2)


class Worker:
    """A process that holds one session and times it on request."""

    def __init__(self, model: Path, sample: Path, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.latency", "--worker", str(model), str(sample), str(threads)]
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


def serve(model: Path, sample: Path, threads: int) -> None:
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


def measure(model: ZooModel) -> list[dict[str, Any]]:
    """One row for each variant and number of threads."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = build(model, Path(folder))
        sample = Path(folder) / "sample.pickle"
        sample.write_bytes(pickle.dumps(model.timing_sample()))
        for variant, file in files.items():
            if isinstance(file, str):
                rows.append({"model": model.name, "variant": variant, "error": file})
        present = {variant: file for variant, file in files.items() if isinstance(file, Path)}
        for threads in _THREADS:
            best = _best(present, sample, threads)
            rows += [
                {"model": model.name, "variant": v, "threads": threads, "ms": ms, "speedup": best[FLOAT] / ms}
                for v, ms in best.items()
            ]
    return rows


def _best(files: dict[str, Path], sample: Path, threads: int) -> dict[str, float]:
    """The best run of every variant, in ms."""
    workers = {variant: Worker(file, sample, threads) for variant, file in files.items()}
    best = dict.fromkeys(workers, float("inf"))
    order = list(workers)
    for _ in range(_ROUNDS):
        for variant in order:
            best[variant] = min(best[variant], workers[variant].round())
        order = order[1:] + order[:1]
    for worker in workers.values():
        worker.close()
    return best


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
    print(save("latency", rows, {"shapes": shapes, "rounds": _ROUNDS}))
    cells = []
    for row in rows:
        if row.get("threads") == _THREADS[-1]:
            continue
        title = MODELS[row["model"]].title if row["variant"] == FLOAT else ""
        same = [r for r in rows if (r["model"], r["variant"]) == (row["model"], row["variant"]) and "ms" in r]
        figures = [f"{r['ms']:.3g}" for r in same] + [f"{r['speedup']:.2f}" for r in same]
        cells.append([title, row["variant"], *(figures or ["failed", "", "", ""])])
    print(table(["Model", "", "ms, 1 thread", "ms, 2 threads", "x float, 1 thread", "x float, 2 threads"], cells))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main(sys.argv[1:] or list(MODELS))
