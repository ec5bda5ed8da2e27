"""The load on one session: wrong answers, errors and growing memory are found, and a good session passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.load import distance_of, growth, loaded, requests
from qcompile.runtime.session import Session

_TEXT = """<ir_version: 10, opset_import: ["": 21]> g (float[batch, length, 4] x) => (float[batch, length, 4] y) {
    w = Constant <value = float[4, 4] {1,2,3,4, 5,6,7,8, 9,1,2,3, 4,5,6,7}> ()
    product = MatMul (x, w) y = Relu (product) }"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    onnx.save(onnx.parser.parse_model(_TEXT), path)
    return path


def test_a_good_session_passes(model: Path) -> None:
    asked = requests(model, "cpu", 12)
    assert len({request.feed["x"].shape for request in asked}) > 6, "shapes are mixed"
    report = loaded(Session(model, ["cpu"], threads=1), asked, threads=4, seconds=0.6)
    assert (report.wrong, report.grew) == (0, False)
    assert report.answers > 100
    assert 0 < report.median_ms <= report.p99_ms
    assert report.device_mib is None
    assert f"{report.answers} answers" in str(report)


def test_answers_of_another_request_are_found(model: Path) -> None:
    """A session that hands out what it gave the last time, as one with a shared output buffer would."""

    class Late(Session):
        last: Any = None

        def __call__(self, inputs: Any) -> dict[str, Any]:
            before, self.last = self.last, super().__call__(inputs)
            return before or self.last

    report = loaded(Late(model, ["cpu"], threads=1), requests(model, "cpu", 12), threads=2, seconds=0.4, tensors=False)
    assert report.wrong > report.answers / 2
    assert "distance" in report.faults[0]


def test_an_error_is_a_wrong_answer(model: Path) -> None:
    class Tired(Session):
        runs = 0

        def __call__(self, inputs: Any) -> dict[str, Any]:
            self.runs += 1
            if self.runs > 30:
                raise RuntimeError("out of memory")
            return super().__call__(inputs)

    report = loaded(Tired(model, ["cpu"], threads=1), requests(model, "cpu", 4), threads=2, seconds=0.4)
    assert 0 < report.wrong <= report.answers
    assert report.faults[0] == "RuntimeError: out of memory"


def test_distances() -> None:
    right = np.array([3.0, 4.0], np.float32)
    assert distance_of({"y": right}, {"y": right}) == 0
    assert distance_of({"y": right * np.float32(1.01)}, {"y": right}) == pytest.approx(0.01, rel=1e-3)
    assert distance_of({"y": right[:1]}, {"y": right}) == np.inf
    assert distance_of({"y": np.array([np.nan, 4])}, {"y": right}) == np.inf
    assert distance_of({}, {"y": right}) == np.inf


def test_growth_is_more_than_noise() -> None:
    assert not growth((1000, 1015))
    assert not growth((1000, 1029))
    assert growth((1000, 1031))
    assert growth((100, 117))
    assert not growth((1000, 500))
