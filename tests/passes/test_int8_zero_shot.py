"""The recipe int8-zero-shot as a user runs it: a model and no data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile.errors import UsageError
from tests.passes.analyze.test_synthesize_samples import one_thread as one_thread
from tests.passes.analyze.test_synthesize_samples import trained
from tests.passes.harness import model_of
from tests.sweep.harness import eager_target
from tests.zoo.model import runner

QUICK = ("synthesize-samples.images=8", "synthesize-samples.iterations=100")
HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def test_a_network_with_batch_norm_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompile.frontends.api.target_named", lambda name: eager_target())
    model, pictures = trained()
    source = tmp_path / "m.onnx"
    ir.save(model, source)
    artifacts = [
        qcompile.compile(source, "int8-zero-shot", output=tmp_path / name, overrides=QUICK, prove=name == "a.onnx")
        for name in ("a.onnx", "b.onnx")
    ]
    assert artifacts[0].path.read_bytes() == artifacts[1].path.read_bytes(), "the same seed, the same bytes"
    report = artifacts[0].report
    assert report.synthetic_data
    assert "distilled from BatchNormalization" in report.data
    assert any(n.startswith("no calibration data") for n in report.notices)
    assert len(report.units) >= 3
    sample = {"x": pictures[:4]}
    expected, got = (runner(path)(sample)["r2"] for path in (source, artifacts[0].path))
    assert 10 * np.log10((expected**2).sum() / ((expected - got) ** 2).sum()) > 20, "dB, on data it never saw"


def test_a_model_that_knows_nothing_still_gets_smaller(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((256, 256)).astype(np.float32) for i in range(2)}
    text = f"{HEAD} g (float[64,256] x) => (float[64,256] y) {{ a = MatMul (x, w0) r = Tanh (a) y = MatMul (r, w1) }}"
    source = tmp_path / "m.onnx"
    ir.save(model_of(text, weights), source)
    report = qcompile.compile(source, "int8-zero-shot", output=tmp_path / "a.onnx").report
    assert report.data == "none"
    assert any("none could be made up" in n for n in report.notices)
    assert len(report.units) == 2
    assert report.bytes_after < 0.4 * report.bytes_before


def test_other_recipes_say_that_there_is_one_without_data(tmp_path: Path) -> None:
    ir.save(trained()[0], tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="int8-zero-shot"):
        qcompile.compile(tmp_path / "m.onnx", "int8-static")
