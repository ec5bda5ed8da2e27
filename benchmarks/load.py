"""One session under load: many threads, many shapes, every answer compared.

    python -m benchmarks.load MODEL [--provider cuda] [--threads 8] [--seconds 300]

MODEL is an ONNX file or the name of a model of the zoo. Sixty-four requests of random shapes are answered once by a
plain ONNX Runtime session on the same provider, one at a time; then threads ask one `qcompile.Session` for them in
random order, as fast as it answers, half of them with numpy arrays and half with torch tensors, which on a GPU lie
there (with --cuda-graphs arrays alone: while a shape is captured, no other thread may wait on the GPU). An answer
counts as wrong from a relative distance of 1e-2 on: other shapes take other kernels, which round otherwise, but
another request's answer is at a distance of 1. Memory (of the process, and used on the device) is looked at four
times a second; what the last quarter of the time holds more than the second quarter is growth.

The exit status is 1 where an answer was wrong or memory grew. Results go to benchmarks/results/load/.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import held_mib, save
from qcompile.runtime.device_memory import used_and_total
from qcompile.runtime.session import Session
from tests.zoo import ALL_MODELS
from tests.zoo.model import Array, Sample

_REQUESTS = 64
_LARGEST_BATCH, _LARGEST = 8, 128
"""Of the free first dimension, and of every other one."""
_WRONG = 1e-2
_MAY_GROW = 0.03, 16.0
"""Part and MiB: less of either is noise of the allocator."""
_EVERY = 0.25  # seconds between two looks at the memory


@dataclass(frozen=True)
class Request:
    """What is asked, and what a plain session answered."""

    feed: Sample
    expected: Sample


@dataclass
class Answers:
    """What one thread saw: milliseconds of each answer, the largest relative distance, and what went wrong."""

    milliseconds: list[float] = field(default_factory=list)
    distance: float = 0.0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """What all threads saw, and the memory.

    Attributes:
        answers, wrong: how many; an error counts as a wrong answer.
        faults: the first of them, in words.
        distance: the largest relative distance of an answer that is not wrong.
        host_mib, device_mib: median in the second and in the last quarter of the time; None for the device on a CPU.
    """

    answers: int
    wrong: int
    faults: list[str]
    distance: float
    seconds: float
    median_ms: float
    p99_ms: float
    host_mib: tuple[float, float]
    device_mib: tuple[float, float] | None

    @property
    def grew(self) -> bool:
        return any(growth(held) for held in (self.host_mib, self.device_mib) if held)

    def __str__(self) -> str:
        device = f", device {self.device_mib[0]:.0f} -> {self.device_mib[1]:.0f} MiB" if self.device_mib else ""
        return (
            f"{self.answers} answers in {self.seconds:.0f} s ({self.answers / self.seconds:.1f}/s), "
            f"{self.wrong} wrong, largest distance {self.distance:.1e}; "
            f"median {self.median_ms:.2f} ms, p99 {self.p99_ms:.2f} ms; "
            f"host {self.host_mib[0]:.0f} -> {self.host_mib[1]:.0f} MiB{device}" + (", GREW" if self.grew else "")
        )


def growth(held: tuple[float, float]) -> bool:
    """Whether the second of two readings in MiB is more than noise above the first."""
    part, least = _MAY_GROW
    return held[1] - held[0] > max(part * held[0], least)


def requests(model: Path, provider: str, count: int = _REQUESTS, seed: int = 0) -> list[Request]:
    """Feeds of random sizes, with the answers of a plain session.

    Sizes are drawn so that every power of two is as likely.
    """
    import onnx_ir as ir

    from qcompile.compiler.inputs import made_up, model_inputs, table_rows

    graph = ir.load(model)
    inputs, rows, random = model_inputs(graph), table_rows(graph), np.random.default_rng(seed)
    first = {i.shape[0] for i in inputs if i.shape}
    free = sorted({d for i in inputs for d in i.shape or () if isinstance(d, str) and d != "?"})
    plain, found = _plain(model, provider), []
    for _ in range(count):
        drawn = {d: int(2 ** random.uniform(0, np.log2(_LARGEST_BATCH if d in first else _LARGEST))) for d in free}
        feed = made_up(inputs, random, rows, drawn)
        found.append(Request(feed, plain(feed)))
    return found


def loaded(session: Session, asked: Sequence[Request], threads: int, seconds: float, tensors: bool = True) -> Report:
    """Ask `session` from many threads at once.

    Args:
        tensors: half of the requests are torch tensors. Not with CUDA graphs: while one is captured, no other thread
            may allocate or wait on the GPU.
    """
    kinds, device = _kinds(session, tensors), _device_mib if session.provider != "CPUExecutionProvider" else None
    seen = [Answers() for _ in range(threads)]
    for request in asked:  # shapes that are new cost what they cost
        for kind in kinds:
            session(kind(request.feed))
    start = time.perf_counter()
    workers = [
        threading.Thread(target=_ask, args=(session, asked, kinds, answers, start + seconds, i))
        for i, answers in enumerate(seen)
    ]
    for worker in workers:
        worker.start()
    host, card = [], []
    while any(worker.is_alive() for worker in workers):
        host.append(held_mib())
        card.append(device() if device else 0.0)
        time.sleep(_EVERY)
    took = time.perf_counter() - start
    times = [ms for answers in seen for ms in answers.milliseconds] or [float("nan")]
    faults = [fault for answers in seen for fault in answers.faults]
    return Report(
        answers=len(times),
        wrong=len(faults),
        faults=faults[:5],
        distance=max(answers.distance for answers in seen),
        seconds=took,
        median_ms=float(np.median(times)),
        p99_ms=float(np.percentile(times, 99)),
        host_mib=_quarters(host),
        device_mib=_quarters(card) if device else None,
    )


def _ask(
    session: Session, asked: Sequence[Request], kinds: Sequence[Any], answers: Answers, end: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    while time.perf_counter() < end:
        request, kind = asked[int(random.integers(len(asked)))], kinds[int(random.integers(len(kinds)))]
        feed = kind(request.feed)
        start = time.perf_counter()
        try:
            outputs = session(feed)
            answer = {name: np.asarray(_host(value)) for name, value in outputs.items()}  # waits for the device
        except Exception as error:  # whatever a thread meets is the finding
            answers.faults.append(f"{type(error).__name__}: {error}"[:300])
            continue
        finally:
            answers.milliseconds.append((time.perf_counter() - start) * 1e3)
        distance = distance_of(answer, request.expected)
        if distance > _WRONG:
            sizes = {name: list(array.shape) for name, array in request.feed.items()}
            answers.faults.append(f"distance {distance:.2g} at {sizes}")
        else:
            answers.distance = max(answers.distance, distance)


def distance_of(answer: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """The largest relative distance of any output; infinite where shapes differ or a number is none."""
    if answer.keys() != expected.keys():
        return float("inf")
    largest = 0.0
    for name, right in expected.items():
        if answer[name].shape != right.shape:
            return float("inf")
        right = right.astype(np.float64)
        off = np.linalg.norm(answer[name].astype(np.float64) - right) / max(float(np.linalg.norm(right)), 1e-30)
        largest = max(largest, float(off) if np.isfinite(off) else float("inf"))
    return largest


def _kinds(session: Session, tensors: bool) -> list[Callable[[Sample], dict[str, Any]]]:
    """The kinds of arrays that requests come as."""
    if not tensors:
        return [dict]
    import torch

    place = "cpu" if session.provider == "CPUExecutionProvider" else "cuda"
    return [dict, lambda feed: {name: torch.from_numpy(array).to(place) for name, array in feed.items()}]


def _host(value: Any) -> Any:
    return value if isinstance(value, np.ndarray) else value.cpu().numpy()


def _plain(model: Path, provider: str) -> Callable[[Sample], Sample]:
    """One request after the other, on a session with nothing but the provider."""
    import onnxruntime

    from qcompile.runtime.providers import candidates, open_session, provider_options

    name = candidates([provider], None)[0].provider
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = open_session(model, options, name, provider_options(name, 0, None))
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, feed), strict=True))


def _quarters(readings: Sequence[float]) -> tuple[float, float]:
    """The median of the second quarter and of the last."""
    part = max(len(readings) // 4, 1)
    return float(np.median(readings[part : 2 * part] or readings)), float(np.median(readings[-part:]))


def _device_mib() -> float:
    used, _ = used_and_total(0) or (0, 0)
    return used / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__.splitlines()[0])
    parser.add_argument("model", help=f"an ONNX file, or one of {', '.join(ALL_MODELS)}")
    parser.add_argument("--provider", default="cpu", help="cpu, cuda or tensorrt (cpu)")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--cuda-graphs", action="store_true", help="capture shapes; requests are numpy arrays alone")
    given = parser.parse_args()
    path = ALL_MODELS[given.model]().path() if given.model in ALL_MODELS else Path(given.model)
    session = Session(path, [given.provider], cuda_graphs=given.cuda_graphs)
    print(session.describe(), flush=True)
    report = loaded(
        session, requests(path, given.provider), given.threads, given.seconds, tensors=not given.cuda_graphs
    )
    print(session.describe())
    print(report, *report.faults, sep="\n")
    row = asdict(report) | {"model": path.stem, "provider": session.provider, "threads": given.threads}
    save(
        "load",
        [row],
        {"described": session.describe()},
        file=f"load/{given.provider}{'-graphs' * given.cuda_graphs}-{path.stem}",
    )
    sys.exit(1 if report.wrong or report.grew else 0)


if __name__ == "__main__":
    main()
