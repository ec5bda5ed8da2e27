"""The end-to-end benchmark of GPUs on a tiny decoder, on the CPU: its logic, not its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu_models
from benchmarks.gpu import forms as all_forms
from benchmarks.gpu.forms import FLOAT, HALF, Form, forms
from benchmarks.gpu.worker import Worker, turn
from benchmarks.gpu.workloads import TRIALS, WORKLOADS, Point
from benchmarks.gpu_models import contestants, measure, rendered, sqnr, verdicts

_DECODER = WORKLOADS["tiny-decoder"]


def test_every_kind_has_all_contestants() -> None:
    for kind in ("encoder", "decoder", "images"):
        names = [form.name for form in forms(kind)]
        assert len(set(names)) == len(names)
        assert {FLOAT, HALF, "TensorRT fp16", "torch.compile fp16", "qcompile fp16"} <= set(names)
    assert "ORT int4" in [form.name for form in forms("decoder")]
    here = contestants(_DECODER, "cpu")
    assert {form.provider for form in here} == {"cpu"}
    assert not any(form.captures for form in here)
    assert {"ORT int4", "qcompile int4-rtn", "qcompile fp16, plain run"} <= {form.name for form in here}


def test_feeds_are_those_of_the_points() -> None:
    for workload in (WORKLOADS[name] for name in ("all-minilm-l6-v2", "efficientnet-lite0", *TRIALS)):
        point = workload.points[0]
        feed = workload.feed(point)
        assert all(len(array) == point.batch for array in feed.values())
        again = workload.feed(point)
        assert all(np.array_equal(feed[name], again[name]) for name in feed)
    decoding = next(point for point in _DECODER.points if point.past)
    caches = [array for name, array in _DECODER.feed(decoding).items() if name.startswith("past")]
    assert [array.shape for array in caches] == [(1, 2, 512, 16)] * 4
    assert str(decoding) == "one token 1"
    assert str(Point("prompt ", 8, 512)) == "prompt 8 x 512"


def test_a_run_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QCOMPILE_TEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("benchmarks.record.RESULTS", tmp_path)
    monkeypatch.setattr(gpu_models, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu_models, "_TURNS", 2)
    file = "gpu-models/no-card/tiny-decoder"
    ours = Form("qcompile float", "session", "cpu", "float")
    chosen = [Form(FLOAT, "bound", "cpu", "float"), ours, Form("never made", "bound", "cpu", "half")]
    make = all_forms.made
    monkeypatch.setattr(gpu_models, "made", lambda w, file: {"error": "no memory"} if file == "half" else make(w, file))
    clock = iter([0.0, 2.0])  # the second point comes too late
    with monkeypatch.context() as late:
        late.setattr(gpu_models.time, "monotonic", lambda: next(clock))
        measure(_DECODER, chosen, "no card", "abc", 1.0)
    assert "time is up; tiny-decoder goes on at one token 1" in capfd.readouterr().out
    [first] = gpu_models.stored(file)["rows"]
    assert set(first["milliseconds"]) == {FLOAT, "qcompile float"}
    assert first["sqnr_db"] == {FLOAT: None, "qcompile float": None}, "the same answers"
    assert first["errors"] == {"never made": "no memory"}
    measure(_DECODER, chosen[:1], "no card", "abc", float("inf"))
    found = gpu_models.stored(file)
    assert [row["point"] for row in found["rows"]] == ["prompt 1 x 8", "one token 1"]
    assert found["rows"][0] == first
    monkeypatch.setattr(gpu_models, "Worker", lambda *_: pytest.fail("all is measured already"))
    measure(_DECODER, chosen, "no card", "abc", float("inf"))
    assert f"| {FLOAT} |" in rendered(found, _DECODER)


def test_a_process_that_dies_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QCOMPILE_TEST_CACHE", str(tmp_path))
    worker = Worker(Form("none", "bound", "cpu", "float"), "tiny-decoder", str(tmp_path / "none.onnx"))
    assert "none.onnx" in worker.loaded()["error"]
    assert "error" in worker.ask(turn=True)
    worker.close()


def test_a_tool_that_fails_leaves_its_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QCOMPILE_TEST_CACHE", str(tmp_path))
    calls: list[str] = []

    def in_process(module: str, *arguments: str) -> dict[str, Any]:
        calls.append(arguments[1])
        return {"error": "out of ideas"}

    monkeypatch.setattr(all_forms, "in_process", in_process)
    for _ in range(2):
        assert all_forms.made(_DECODER, "half")["error"] == "out of ideas"
    assert calls == ["half"], "what failed once is not tried again until the tool changes"


def test_a_turn_is_as_many_calls_as_fill_it() -> None:
    calls: list[int] = []
    microseconds = turn(lambda: calls.append(1), lambda: None)
    assert len(calls) == 2001
    assert 0 < microseconds < 1000


def test_signal_to_noise() -> None:
    right = np.array([3.0, 4.0])
    assert sqnr(right, right) is None
    assert sqnr(right, right * 1.1) == pytest.approx(20)


def test_the_table_and_what_it_means() -> None:
    times = {FLOAT: 4.0, HALF: 2.0, "TensorRT fp16": 1.5, "qcompile fp16": 2.0, "qcompile int8-dynamic": 1.0}
    times["qcompile fp16, CUDA graph"] = 1.6
    row = {
        "point": "prompt 1 x 8",
        "batch": 1,
        "milliseconds": times | {"qcompile fp16, plain run": 3.2},
        "sqnr_db": {FLOAT: None, HALF: 60.0, "qcompile int8-dynamic": 35.5},
        "device_mib": dict.fromkeys([*times, "qcompile fp16, plain run"], 100),
        "errors": {"TensorRT-RTX fp16": "no plugin"},
    }
    late = row | {"point": "one token 1", "milliseconds": {HALF: 2.0}, "device_mib": {HALF: 250}, "errors": {}}
    found: dict[str, Any] = {"rows": [row, late], "metrics": {HALF: 20.5}}
    lines = rendered(found, _DECODER).splitlines()
    assert lines[0] == "| ms | prompt 1 x 8 | one token 1 | least SQNR, dB | metric | MiB |"
    assert lines[3] == "| ORT fp16 | 2.000 | 2.000 | 60.0 | 20.5 | 250 |"
    assert "| qcompile int8-dynamic | 1.000 (2.00) |  | 35.5 |  | 100 |" in lines
    assert "- TensorRT-RTX fp16: no plugin" in lines
    assert verdicts(found, _DECODER) == [
        "- prompt 1 x 8: qcompile int8-dynamic takes 1.000 ms, 1.50x TensorRT fp16, 2.00x ORT fp16; "
        "qcompile fp16, CUDA graph, is 2.00x its plain session.run"
    ]
