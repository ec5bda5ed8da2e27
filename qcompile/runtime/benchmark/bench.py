"""Models at several sizes of input: their time in turns, their work, and what the device could have done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from qcompile.runtime.benchmark import ceilings
from qcompile.runtime.benchmark.ceilings import Ceilings
from qcompile.runtime.benchmark.results import Benchmark, Point, Row
from qcompile.runtime.benchmark.turns import Contest, Timing, ratio
from qcompile.runtime.benchmark.work import Work, work_of
from qcompile.runtime.machine import device_name
from qcompile.runtime.providers import CPU


def bench(
    models: Sequence[Path],
    points: Sequence[Point],
    provider: str = CPU,
    *,
    why: str = "",
    threads: int = 0,
    cuda_graphs: bool = False,
    seconds: float = 2.0,
    advance: Callable[[], None] = lambda: None,
) -> Benchmark:
    """Measure `models` at `points`.

    Args:
        models: the first one is what the others are compared with.
        cuda_graphs: whether sessions on the GPU replay CUDA graphs.
        seconds: for each point.
        advance: called after each of len(models) + 1 + len(points) steps.

    Raises:
        QCompileError: the provider does not load, or cannot run a model at a point, or not by a CUDA graph.
    """
    works = []
    for path in models:
        works.append(work_of(path, [point.sample for point in points], provider))
        advance()
    types = {kind for work in works for one in work for kind in one.operations}
    best = ceilings.measured(types, provider, threads)
    advance()
    contest = Contest({str(i): path for i, path in enumerate(models)}, provider, threads, cuda_graphs)
    rows = []
    for i, point in enumerate(points):
        first, *_ = timings = list(contest.timings(point.sample, seconds).values())
        for path, timing, work in zip(models, timings, works, strict=True):
            rows.append(_row(path, point, timing, first, work[i], best))
        advance()
    unit = "tokens" if any(point.sequence is not None for point in points) else "samples"
    device = device_name(provider)
    return Benchmark(provider, why, device, threads, cuda_graphs, unit, best.products, best.copy, rows)


def _row(path: Path, point: Point, timing: Timing, first: Timing, work: Work, best: Ceilings) -> Row:
    ms = timing.median
    faster, spread = (None, None) if timing is first else ratio(timing, first)
    return Row(
        model=str(path),
        batch=point.batch,
        sequence=point.sequence,
        phase=point.phase,
        shapes={name: list(array.shape) for name, array in point.sample.items()},
        milliseconds=ms,
        spread=timing.spread,
        per_second=point.items / ms * 1e3,
        operations=work.operations,
        bytes=work.bytes,
        gflops=work.total / ms / 1e6,
        gbytes=work.bytes / ms / 1e6,
        of_products=best.of_products(work, ms),
        of_copy=best.of_copy(work, ms),
        times_faster=faster,
        times_faster_spread=spread,
    )
