"""Calibration: what it sees, what it refuses, and that a killed run goes on as if nothing had happened."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.histogram import HELD_OUT, HISTOGRAM
from qcompile.compiler.passes import StatisticRequest
from qcompile.compiler.printer import print_model
from qcompile.compiler.statistics import RANGE, StatisticsTable
from qcompile.compiler.targets import target_named
from qcompile.errors import DataError
from qcompile.passes.analyze import calibrate
from qcompile.passes.analyze.calibrate import Calibrate
from tests.passes.harness import model_of
from tests.sweep.harness import RECIPE, Samples, compile_in_memory

HEAD = '<ir_version: 8, opset_import: ["": 17]> '
CHAIN = HEAD + "g (float[N,4] x) => (float[N,4] y) { h = MatMul (x, w) l = Log (h) y = Tanh (l) }"
W = np.eye(4, dtype=np.float32) * np.float32([0.1, 1, 2, 3])


def positive(count: int = 12) -> list[Sample]:
    """Samples of 1 to 3 rows on which every tensor of CHAIN is finite."""
    random = np.random.default_rng(0)
    return [{"x": random.uniform(0.1, 9, (1 + i % 3, 4)).astype(np.float32)} for i in range(count)]


def run(
    samples: Sequence[Sample] | Samples,
    names: Sequence[str] = ("x", "h", "l", "y"),
    *,
    model: ir.Model | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    **options: Any,
) -> StatisticsTable:
    source = samples if isinstance(samples, Samples) else Samples(samples)
    context = CompileContext(target_named("cpu"), Path("unused"), source, checkpoint=checkpoint, resume=resume)
    context.requests = [StatisticRequest(name, RANGE) for name in names]
    Calibrate(**options).run(model or model_of(CHAIN, {"w": W}), context)
    return context.statistics


def test_ranges_are_numpys_over_all_samples() -> None:
    samples = positive()
    seen = run(samples)
    assert seen.samples == 12
    xs = np.concatenate([s["x"] for s in samples])
    for name, values in {"x": xs, "h": xs @ W, "l": np.log(xs @ W), "y": np.tanh(np.log(xs @ W))}.items():
        found = seen.range_of(name)
        assert found is not None
        assert (found.low, found.high) == pytest.approx((values.min(), values.max()), rel=2e-6)
        assert found.mean_magnitude == pytest.approx(np.abs(values).mean(), rel=1e-5)
        assert found.elements == xs.size / 12
    assert seen.range_of("x").low == xs.min()  # type: ignore[union-attr]


def test_shards_merge_to_the_whole() -> None:
    samples = positive(11)
    whole = run(samples).vectors["range"]
    parts = [run(part).vectors["range"] for part in (samples[:4], samples[4:5], samples[5:])]
    for name, vector in whole.items():
        merged = RANGE.identity()
        for part in parts:
            merged = RANGE.merge(merged, part[name])
        np.testing.assert_array_equal(merged[[0, 1, 3]], vector[[0, 1, 3]])
        np.testing.assert_allclose(merged[2], vector[2], rtol=1e-12)


def test_the_model_is_left_alone_and_constants_are_not_observed() -> None:
    model = model_of(CHAIN, {"w": W})
    before = print_model(model, provenance=True)
    seen = run(positive(2), ["w", "x", "nothing of that name"], model=model)
    assert print_model(model, provenance=True) == before
    assert set(seen.vectors["range"]) == {"x"}


@pytest.mark.parametrize(("value", "tensors"), [(-1.0, "l"), (np.nan, "xhl")], ids=str)
def test_a_tensor_with_nan_and_its_sample_are_named(value: float, tensors: str) -> None:
    samples = positive(6)
    samples[4] = {"x": np.full((2, 4), value, np.float32)}
    with pytest.raises(DataError, match=rf"tensor '[{tensors}]' holds NaN for calibration sample 5"):
        run(samples)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_is_a_bound_and_no_fault(value: float) -> None:
    """As in a mask before a Softmax; the tensor stays float."""
    text = HEAD + "g (float[N,4] x) => (float[N,4] y) { y = Softmax (x) }"
    seen = run([{"x": np.float32([[1, value, 2, 3]])}], ["x"], model=model_of(text)).range_of("x")
    assert seen is not None
    assert value in (seen.low, seen.high)


def test_one_nan_among_numbers_is_seen() -> None:
    for position in range(4):
        row = np.ones((1, 4), np.float32)
        row[0, position] = np.nan
        with pytest.raises(DataError, match="tensor 'x'"):
            run([{"x": row}])


def test_a_mask_of_the_lowest_number_is_finite() -> None:
    lowest = np.finfo(np.float32).min
    text = HEAD + "g (float[N,4] x, float[N,4] mask) => (float[N,4] y) { k = Add (x, mask) y = Softmax (k) }"
    sample = {"x": np.zeros((2, 4), np.float32), "mask": np.float32([[0, 0, lowest, lowest]] * 2)}
    found = run([sample], ["mask", "k"], model=model_of(text)).range_of("mask")
    assert found is not None
    assert (found.low, found.high) == (lowest, 0)


def test_no_samples() -> None:
    with pytest.raises(DataError, match="no calibration samples"):
        run([])


DECODER = (
    HEAD
    + """g (float[1,P,4] past, float[1,1,4] x) => (float[1,Q,4] y, float[1,Q,4] present) {
  present = Concat <axis = 1> (past, x)
  p = MatMul (present, w)
  y = Tanh (p)
}"""
)


def test_a_decoder_whose_past_is_empty_at_first_compiles() -> None:
    random = np.random.default_rng(0)
    samples = [
        {"past": random.standard_normal((1, n, 4)).astype(np.float32), "x": np.ones((1, 1, 4), np.float32)}
        for n in (0, 3, 0, 5)
    ]
    model = model_of(DECODER, {"w": W})
    found = run(samples, ["past", "present"], model=model).range_of("past")
    pasts = np.concatenate([s["past"].reshape(-1) for s in samples])
    assert found is not None
    assert (found.low, found.high, found.elements) == (pasts.min(), pasts.max(), 8)
    compiled = compile_in_memory(ir.to_proto(model), samples, RECIPE)
    assert set(compiled.context.plan.units) | set(compiled.context.plan.kept_float)


def test_a_tensor_that_is_always_empty_was_not_computed() -> None:
    empty = {"past": np.zeros((1, 0, 4), np.float32), "x": np.ones((1, 1, 4), np.float32)}
    assert run([empty] * 2, ["past"], model=model_of(DECODER, {"w": W})).range_of("past") is None


def test_samples_are_not_kept() -> None:
    alive: list[weakref.ref[npt.NDArray[Any]]] = []
    most = 0

    class Made(Samples):
        def __len__(self) -> int:
            return 40

        def __iter__(self) -> Iterator[Sample]:
            nonlocal most
            for i in range(len(self)):
                sample = {"x": np.full((1, 4), 1.0 + i, np.float32)}
                alive.append(weakref.ref(sample["x"]))
                yield sample
                most = max(most, sum(ref() is not None for ref in alive))

    assert run(Made()).samples == 40
    assert most <= 8, "a few in flight, however many there are"


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
from qcompile.passes.analyze import calibrate
from tests.passes.analyze.test_calibrate import Slow, positive, run
calibrate.CHECKPOINT_SECONDS = 0.0
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
        patch.setattr(calibrate, "CHECKPOINT_SECONDS", 0.0)
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
