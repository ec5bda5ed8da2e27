"""A calibration that was killed goes on as if nothing had happened."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompile.compiler import tally
from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.histogram import HELD_OUT, HISTOGRAM
from qcompile.compiler.passes import StatisticRequest
from qcompile.compiler.statistics import RANGE, StatisticsTable
from qcompile.compiler.targets import target_named
from qcompile.errors import DataError
from qcompile.passes.analyze import calibrate
from qcompile.passes.analyze.calibrate import Calibrate
from tests.passes.analyze.test_calibrate import CHAIN, W, positive, run
from tests.passes.harness import model_of
from tests.sweep.harness import Samples


def vectors(table: StatisticsTable) -> dict[tuple[str, str], bytes]:
    """Every number of every statistic, bit by bit."""
    return {(kind, t): v.tobytes() for kind, of in table.vectors.items() for t, v in of.items()}


class Slow(Samples):
    """Samples that take a while, so that a process can be killed among them."""

    def __iter__(self) -> Iterator[Sample]:
        for sample in super().__iter__():
            time.sleep(0.02)
            yield sample


KILLED = """
import sys
from pathlib import Path
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.compiler import tally
from tests.passes.analyze.test_calibrate import positive, run
from tests.passes.analyze.test_resume import Slow
tally.CHECKPOINT_SECONDS = 0.0
print("started", flush=True)
run(Slow(positive(40)), method="auto", checkpoint=Path(sys.argv[1]), resume="resume" in sys.argv)
"""


def kill_after(seconds: float, checkpoint: Path, *arguments: str) -> None:
    """Calibrate in a process of its own and kill it in the middle, wherever that is."""
    command = [sys.executable, "-c", KILLED, str(checkpoint), *arguments]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_run_killed_twice_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "out.onnx.checkpoint"
    moments = np.random.default_rng().uniform(0.1, 0.4, 2)
    kill_after(moments[0], checkpoint)
    kill_after(moments[1], checkpoint, "resume")
    walked: list[int] = []
    read_samples = calibrate.read_samples

    def counting(*arguments: Any) -> Iterator[Any]:
        for outputs in read_samples(*arguments):
            walked.append(1)
            yield outputs

    monkeypatch.setattr(calibrate, "read_samples", counting)
    resumed = run(positive(40), method="auto", checkpoint=checkpoint, resume=True)
    assert len(walked) < 40 or moments.max() < 0.2, "samples that were merged are not run again"
    assert resumed.samples == 40
    assert set(resumed.vectors) == {"range", "moving average", HISTOGRAM.kind, HELD_OUT.kind}
    assert vectors(resumed) == vectors(run(positive(40), method="auto"))


@pytest.mark.parametrize("method", ["min-max", "auto"])
@pytest.mark.parametrize("at", [1, 5, 11])
def test_stopped_at_any_sample_it_goes_on_to_the_same_bits(
    at: int, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "c"
    kill_here(checkpoint, monkeypatch, at, method=method)
    resumed = run(positive(), checkpoint=checkpoint, resume=True, method=method)
    assert vectors(resumed) == vectors(run(positive(), method=method))


def test_a_recipe_that_calibrates_twice_resumes_in_the_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "CHECKPOINT_SECONDS", 0.0)

    def both(source: Samples, resume: bool) -> tuple[StatisticsTable, StatisticsTable]:
        context = CompileContext(target_named("cpu"), Path("unused"), source, checkpoint=tmp_path / "c", resume=resume)
        found = []
        for names, method in (("x", "min-max"), ("xy", "mse")):
            context.requests = [StatisticRequest(name, RANGE) for name in names]
            Calibrate(method=method).run(model_of(CHAIN, {"w": W}), context)  # type: ignore[arg-type]
            found.append(context.statistics)
        return found[0], found[1]

    class StopsInTheSecond(Samples):
        walks = 0

        def __iter__(self) -> Iterator[Sample]:
            self.walks += 1
            yield from list(super().__iter__())[: 5 if self.walks == 2 else None]
            if self.walks == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        both(StopsInTheSecond(positive()), resume=False)
    resumed = StopsInTheSecond(positive())
    resumed.walks = 2
    found = both(resumed, resume=True)
    assert resumed.walks == 3, "the first run is not repeated"
    (tmp_path / "c").unlink()
    for ours, other in zip(found, both(Samples(positive()), resume=False), strict=True):
        assert vectors(ours) == vectors(other)


def test_without_resume_it_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "c"
    kill_here(checkpoint, monkeypatch)
    assert vectors(run(positive(), checkpoint=checkpoint)) == vectors(run(positive()))


def _npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"something else"),
        lambda p: p.write_bytes(p.read_bytes()[:-40]),
        lambda p: p.write_bytes(p.read_bytes()[:60]),
        lambda p: p.write_bytes(p.read_bytes().replace(b"NUMPY", b"GRUMP")),
        _npy,
        lambda p: np.savez(p.open("wb"), other=1),
    ],
    ids=["empty", "not a checkpoint", "cut at the end", "cut at the start", "wrong bytes", "one array", "other arrays"],
)
def test_a_damaged_checkpoint(damage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "c"
    kill_here(checkpoint, monkeypatch)
    damage(checkpoint)
    with pytest.raises(DataError, match="the checkpoint is damaged"):
        run(positive(), checkpoint=checkpoint, resume=True)


def kill_here(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, at: int = 5, **options: Any) -> None:
    """Leave a checkpoint as a killed process does, without a process."""

    class Stops(Samples):
        def __iter__(self) -> Iterator[Sample]:
            yield from list(super().__iter__())[:at]
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tally, "CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            run(Stops(positive()), checkpoint=checkpoint, **options)


class Others(Samples):
    def digest(self) -> str:
        return "of other samples"


@pytest.mark.parametrize(
    "other",
    [
        {"samples": Others(positive())},
        {"model": model_of(CHAIN, {"w": W * np.float32(2)})},
        {"model": model_of(CHAIN.replace("Tanh", "Relu"), {"w": W})},
        {"names": ["x", "h", "l"]},
    ],
    ids=["other samples", "other weights", "another graph", "other tensors"],
)
def test_a_foreign_checkpoint(other: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "c"
    kill_here(checkpoint, monkeypatch)
    arguments = {"samples": positive()} | other
    with pytest.raises(DataError, match="belongs to another model, recipe or data set"):
        run(**arguments, checkpoint=checkpoint, resume=True)
    assert run(positive(), checkpoint=checkpoint, resume=True).samples == 12
