"""Timing in turns: its arithmetic and its form; what it measures is for benchmarks, not for tests."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from qcompile.errors import ModelError
from qcompile.runtime.benchmark import Timing, interleaved, node_times, on_host, ratio
from qcompile.runtime.benchmark.turns import copies, in_turns
from tests.verification.qdq_models import convolutions

SAMPLE = {"x": np.zeros((1, 4, 8, 8), np.float32)}


def test_ratio_and_spread() -> None:
    faster, spread = ratio(Timing((4.0, 4.0, 4.0)), Timing((2.0, 2.0, 2.0)))
    assert (faster, spread) == (2.0, 0.0)
    _, spread = ratio(Timing((4.0, 6.0, 8.0)), Timing((2.0, 2.0, 2.0)))
    assert spread == pytest.approx((3.8 - 2.2) / 3)


def test_models_take_the_same_number_of_turns(tmp_path: Path) -> None:
    onnx.save(convolutions(), tmp_path / "m.onnx")
    timings = interleaved({"a": tmp_path / "m.onnx", "b": tmp_path / "m.onnx"}, SAMPLE, seconds=0)
    assert len(timings["a"].turns) == len(timings["b"].turns) == 3
    assert timings["a"].median > 0


def test_spread_is_the_distance_of_the_quartiles() -> None:
    assert Timing((1.0, 2.0, 3.0, 4.0, 5.0)).spread == pytest.approx((4 - 2) / 3)


def test_every_round_begins_with_another_one() -> None:
    order: list[str] = []

    def turn(name: str) -> float:
        order.append(name)
        return 1.0

    found = in_turns({name: partial(turn, name) for name in "abc"}, seconds=0)
    assert "".join(order) == "abcbcacab"
    assert all(len(timing.turns) == 3 for timing in found.values())


def test_copies_leave_none_in_the_cache() -> None:
    assert [copies(size, 1000) for size in (1, 500, 999, 1000, 2000, 5000)] == [64, 4, 3, 2, 1, 1]


def test_copies_of_the_inputs_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Watched:
        def get_inputs(self) -> list[Any]:
            return [SimpleNamespace(name="x")]

        def run(self, _: None, feed: dict[str, Any]) -> None:
            seen.append(feed["x"].ctypes.data)

    monkeypatch.setattr(on_host, "l2_bytes", lambda: SAMPLE["x"].nbytes)
    run = on_host.Host().runner(Watched(), SAMPLE | {"other": np.zeros(9)})
    for _ in range(4):
        run()
    assert seen[0] == seen[1] == seen[3] == SAMPLE["x"].ctypes.data
    assert seen[2] == seen[4] != seen[0]


def test_nodes_are_listed_slowest_first(tmp_path: Path) -> None:
    onnx.save(convolutions(), tmp_path / "m.onnx")
    found = node_times(tmp_path / "m.onnx", SAMPLE, runs=3)
    assert [op_type for _, op_type, _ in found].count("QLinearConv") == 2
    assert [ms for *_, ms in found] == sorted((ms for *_, ms in found), reverse=True)


def test_a_file_that_is_no_model_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError):
        interleaved({"a": tmp_path / "m.onnx"}, SAMPLE, seconds=0)
