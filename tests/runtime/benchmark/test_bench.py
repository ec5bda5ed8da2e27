"""The whole benchmark on the CPU: ceilings that can be, rates that follow from times, all of it as JSON."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from qcompile.runtime.benchmark import ceilings
from qcompile.runtime.benchmark.bench import bench
from qcompile.runtime.benchmark.ceilings import Ceilings
from qcompile.runtime.benchmark.results import Benchmark, Point
from qcompile.runtime.benchmark.work import Work
from qcompile.runtime.providers import CPU
from tests.verification.qdq_models import convolutions


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    path = tmp_path_factory.mktemp("bench") / "m.onnx"
    onnx.save(convolutions(), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ceilings._SIDES, CPU, (64, 128))
        patch.setitem(ceilings._VECTOR, CPU, 1 << 16)
        patch.setattr(ceilings, "_SECONDS", 0.0)
        point = Point({"x": np.zeros((1, 4, 8, 8), np.float32)}, 1)
        return bench([path, path], [point], CPU, why="asked for", seconds=0)


def test_rates_follow_from_times(found: Benchmark) -> None:
    first, second = found.rows
    assert (first.batch, first.shapes, found.unit) == (1, {"x": [1, 4, 8, 8]}, "samples")
    assert first.per_second == pytest.approx(1e3 / first.milliseconds)
    assert first.gflops == pytest.approx(first.operations["int8"] / first.milliseconds / 1e6)
    assert first.of_products == pytest.approx(first.gflops / found.products["int8"])
    assert first.of_copy == pytest.approx(first.gbytes / found.copy)
    assert first.times_faster is None
    assert second.times_faster == pytest.approx(second.milliseconds / first.milliseconds)


def test_only_ceilings_that_are_needed(found: Benchmark) -> None:
    assert set(found.products) == {"int8"}
    assert found.products["int8"] > 0 < found.copy


def test_json(found: Benchmark) -> None:
    told = json.loads(json.dumps(found.data()))
    assert told["rows"][0]["milliseconds"] == pytest.approx(found.rows[0].milliseconds, rel=1e-3)
    assert told["device"]


def test_shares_of_mixed_work() -> None:
    best = Ceilings({"float32": 100.0, "int8": 400.0}, 10.0)
    work = Work({"float32": 1e9, "int8": 8e9}, 5e7)
    assert best.of_products(work, 60.0) == pytest.approx((10 + 20) / 60)
    assert best.of_copy(work, 50.0) == pytest.approx(0.1)
    assert Ceilings({"float16": 100.0}, 1.0).of_products(Work({"bfloat16": 1e9}, 0), 20.0) == pytest.approx(0.5)
    assert best.of_products(Work({"float8": 1.0}, 0), 1.0) is None
    assert best.of_products(Work({}, 0), 1.0) is None


def test_items() -> None:
    assert Point({}, 8).items == 8
    assert Point({}, 8, 128).items == 8 * 128
    assert Point({}, 8, 128, "decode").items == 8
