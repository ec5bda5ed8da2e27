"""Every pretrained model of the zoo, compiled with int8-static and judged on its own task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

import qcompile
from tests.zoo import MODELS
from tests.zoo.minilm import MiniLM
from tests.zoo.model import Sample, ZooModel, runner
from tests.zoo.text import judged_articles

pytestmark = pytest.mark.models


@dataclass(frozen=True)
class Compiled:
    """One zoo model and what qcompile made of it."""

    model: ZooModel
    samples: list[Sample]
    artifact: qcompile.Artifact


@pytest.fixture(scope="module", params=list(MODELS))
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    model = MODELS[request.param]()
    samples = model.calibration(model.calibration_count)
    output = tmp_path_factory.mktemp("artifact") / f"{model.name}.int8.onnx"
    return Compiled(model, samples, qcompile.compile(model.path(), calibration=samples, output=output))


def test_the_task_metric_survives(compiled: Compiled) -> None:
    before = compiled.model.metric(runner(compiled.model.path()))
    after = compiled.model.metric(runner(compiled.artifact.path))
    lost = compiled.model.loss(before, after)
    assert lost <= compiled.model.allowed_drop, f"{compiled.model.metric_name}: {before:.4f} -> {after:.4f}"


def test_every_planned_unit_is_seen_in_int8(compiled: Compiled) -> None:
    units = compiled.artifact.report.units
    assert len(units) >= compiled.model.least_units
    assert [u.node for u in units if u.proved is not True] == []


def test_what_stays_float_has_a_reason(compiled: Compiled) -> None:
    report = compiled.artifact.report
    assert [r.node for r in report.kept_float if not r.reason] == []
    named = {record.op_type for record in (*report.units, *report.kept_float)}
    weighted = {"Conv", "MatMul", "Gemm"} & {n.op_type for n in onnx.load(compiled.artifact.path).graph.node}
    assert weighted <= named | {"MatMulIntegerToFloat"}


def test_the_artifact_is_smaller(compiled: Compiled) -> None:
    before, after = compiled.model.path().stat().st_size, compiled.artifact.path.stat().st_size
    assert after < before * compiled.model.allowed_size, f"{before} -> {after} bytes"


def test_the_artifact_is_valid_onnx_with_a_manifest(compiled: Compiled) -> None:
    model = onnx.load(compiled.artifact.path)
    onnx.checker.check_model(model, full_check=True)
    assert "qcompile.manifest" in {p.key for p in model.metadata_props}


def test_a_second_compilation_gives_the_same_bytes(compiled: Compiled, tmp_path: Path) -> None:
    again = qcompile.compile(
        compiled.model.path(), calibration=compiled.samples, output=tmp_path / "again.onnx", prove=False
    )
    assert again.path.read_bytes() == compiled.artifact.path.read_bytes()


def test_sentences_keep_their_polarity(tmp_path: Path) -> None:
    """A second task for the sentence encoder: a probe trained on float embeddings still works on int8 ones."""
    model = MiniLM()
    artifact = qcompile.compile(
        model.path(), calibration=model.calibration(64), output=tmp_path / "minilm.onnx", prove=False
    )
    reference = runner(model.path())
    before = model.polarity(reference, reference)
    assert model.polarity(runner(artifact.path), reference) >= before - 0.02


def test_smoothing_brings_embeddings_closer(tmp_path: Path) -> None:
    """Post-norm BERT: the values of its attentions fold, its norms take an inserted Mul where that pays."""
    model, articles = MiniLM(), judged_articles()[0]
    exact = model.embed(runner(model.path()), articles)
    away = {}
    for recipe in ("int8-static", "int8-smoothquant"):
        output = tmp_path / f"{recipe}.onnx"
        artifact = qcompile.compile(model.path(), recipe, calibration=model.calibration(64), output=output, prove=False)
        away[recipe] = 1 - float((exact * model.embed(runner(artifact.path), articles)).sum(1).mean())
        assert [n.op_type for n in onnx.load(output).graph.node].count("MatMulIntegerToFloat") == 36
    assert away["int8-smoothquant"] < 0.75 * away["int8-static"]


@pytest.mark.parametrize("name", ["all-minilm-l6-v2", "silero-vad", "silero-vad-step"])
def test_dynamic_quantization_needs_no_samples(name: str, tmp_path: Path) -> None:
    """Linear layers in blocks, LSTM by tensor; what ruins Silero VAD elsewhere is convolutions with one scale."""
    model = MODELS[name]()
    artifact = qcompile.compile(model.path(), "int8-dynamic", output=tmp_path / "dynamic.onnx", prove=False)
    kernels = {n.op_type for n in ir.load(artifact.path).graph.all_nodes()}
    assert kernels & {"MatMulNBits", "DynamicQuantizeLSTM"}
    before, after = model.metric(runner(model.path())), model.metric(runner(artifact.path))
    assert model.loss(before, after) <= 0.003
