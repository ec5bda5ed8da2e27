"""Timing in turns: its arithmetic and its form; what it measures is for benchmarks, not for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompile.errors import ModelError
from qcompile.runtime.benchmark import Timing, interleaved, node_times, ratio
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


def test_nodes_are_listed_slowest_first(tmp_path: Path) -> None:
    onnx.save(convolutions(), tmp_path / "m.onnx")
    found = node_times(tmp_path / "m.onnx", SAMPLE, runs=3)
    assert [op_type for _, op_type, _ in found].count("QLinearConv") == 2
    assert [ms for *_, ms in found] == sorted((ms for *_, ms in found), reverse=True)


def test_a_file_that_is_no_model_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError):
        interleaved({"a": tmp_path / "m.onnx"}, SAMPLE, seconds=0)
