"""Turns on a real GPU: the device's clock agrees with the host's, and the ceilings are those of a GPU."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from qcompile.runtime.benchmark import ceilings
from qcompile.runtime.benchmark.bench import bench
from qcompile.runtime.benchmark.device_clock import DeviceClock
from qcompile.runtime.benchmark.on_device import Device
from qcompile.runtime.benchmark.results import Point
from qcompile.runtime.providers import CUDA
from tests.gpu.machine import why_not_on_gpu

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(why_not_on_gpu()), reason=why_not_on_gpu())]


@pytest.fixture
def product(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A product of 2048 x 2048 matrices of float16."""
    made, sample = ceilings._product("float16", 2048, np.random.default_rng(0), CUDA)
    path = tmp_path / "product.onnx"
    path.write_bytes(made.SerializeToString())
    return path, sample


def test_the_clocks_agree(product: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, sample = product
    device, clock = Device(CUDA), DeviceClock.of(0)
    run = device.runner(device.open(path), sample)
    clock.wait()
    start = time.perf_counter()
    of_device = clock.milliseconds(run, 200)
    of_host = (time.perf_counter() - start) * 1e3
    assert 0.5 * of_host < of_device <= 1.05 * of_host


def test_ceilings() -> None:
    best = ceilings.measured({"float32", "float16", "int8"}, CUDA)
    assert best.products["float16"] > best.products["float32"] / 2 > 1000
    assert best.copy > 100


def test_a_benchmark(product: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, sample = product
    (row,) = bench([path], [Point(sample, 1)], CUDA).rows
    assert row.operations == {"float16": 2 * 2048**3}
    assert row.of_products is not None
    assert 0.05 < row.of_products < 1.2
