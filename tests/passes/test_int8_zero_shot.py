"""The recipe int8-zero-shot as a user runs it: a model and no data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import qcompile
from qcompile.compiler.passes import Phase
from qcompile.errors import UsageError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.passes.analyze.synthesize_samples import SynthesizeSamples
from qcompile.runtime.torch_graph import TorchGraph
from tests.passes.analyze.test_synthesize_samples import on_cpu, trained
from tests.passes.analyze.test_synthesize_samples import one_thread as one_thread
from tests.passes.harness import model_of, run
from tests.sweep.harness import eager_target
from tests.zoo.efficientnet_lite0 import EfficientNetLite0
from tests.zoo.model import runner

QUICK = ("synthesize-samples.images=8", "synthesize-samples.iterations=100")
HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def test_a_network_with_batch_norm_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompile.frontends.job.target_named", lambda name: eager_target())
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


@pytest.mark.models
def test_distilled_pictures_give_better_ranges_than_noise() -> None:
    """EfficientNet-Lite0, four pictures: widths of the 49 normalised values against those of photographs."""
    zoo = EfficientNetLite0()
    model, on = ir.load(zoo.with_batch_norm()), on_cpu()
    prepare = [p for p in find_recipe("int8-zero-shot").passes() if p.phase is Phase.PREPARE]
    run(model, *prepare, SynthesizeSamples(images=4, iterations=25), on=on)
    assert on.calibration is not None
    before, after = (float(w) for w in on.calibration.description.split("loss ")[1].split()[0::3][:2])
    assert after < before / 3
    assert len(on.moments) == 49
    graph = TorchGraph(model)
    photos = np.concatenate([s["x"] for s in zoo.calibration(4)])
    noise = np.random.default_rng(1).standard_normal(photos.shape).astype(np.float32)
    widths = []
    for pictures in (photos, np.concatenate([s["x"] for s in on.calibration]), noise):
        with torch.no_grad():
            values = graph({"x": torch.from_numpy(pictures)}, list(on.moments))
        widths.append(np.array([float(v.max() - v.min()) for v in values.values()]))
    off = [np.sqrt(np.mean(np.log(w / widths[0]) ** 2)) for w in widths[1:]]
    assert off[0] < 0.7 * off[1]


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
