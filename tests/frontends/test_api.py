"""compile() from end to end on a small model, with the packaged recipe and with recipes of our own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import qcompile
from qcompile.compiler import tally
from qcompile.compiler.context import CompileContext
from qcompile.compiler.passes import Pass, Phase
from qcompile.compiler.recipe import Recipe, Step
from qcompile.compiler.reporting.verdict import verdict
from qcompile.compiler.timings import Bench, Timings
from qcompile.errors import DataError, OutputError, ProofError, QCompileError, RecipeError, UsageError
from qcompile.frontends import api
from qcompile.frontends.builtin_recipes import find_recipe, recipe_names
from tests.frontends.models import WIDTH, linear, npz_folder, samples, save


class TouchNothing(Pass):
    """A pass without effect, for recipes that need no data."""

    name: ClassVar[str] = "touch-nothing"
    phase: ClassVar[Phase] = Phase.PREPARE

    word: str = ""

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        if self.word:
            context.notice(self.word)
        return False


NOTHING = Recipe(name="nothing", steps=(Step(name="touch-nothing"),))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(linear(), tmp_path / "m.onnx")


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_the_main_job(tmp_path: Path) -> None:
    model = save(linear(width=512), tmp_path / "m.onnx")
    artifact = qcompile.compile(model, calibration=samples(40, width=512), prove=False)
    assert artifact.path == model.with_name("m.int8-static.onnx")
    report = artifact.report
    assert (report.recipe, report.target, report.samples) == ("int8-static", "cpu", 32)
    assert report.bytes_before == model.stat().st_size
    assert report.bytes_after == artifact.path.stat().st_size
    assert len(report.passes) == len(find_recipe("int8-static").steps)
    session = qcompile.load(artifact.path)
    assert session.manifest is not None
    assert session.manifest["data"]["samples"] == 32
    x = samples(1, seed=9, width=512)[0]
    before = qcompile.load(model, ["cpu"])(x)["y"]
    assert np.abs(session(x)["y"] - before).max() < 0.05 * np.abs(before).max()
    ops = {n.op_type for n in ir.load(artifact.path).graph.all_nodes()}
    assert "QuantizeLinear" in ops
    assert files(model.parent) == ["m.int8-static.onnx", "m.onnx"]


def test_same_inputs_same_bytes(model: Path, tmp_path: Path) -> None:
    folder = npz_folder(tmp_path / "data", 6)
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "c.onnx"]
    for path, data in zip(paths, (folder, str(folder), samples(6)), strict=True):
        qcompile.compile(model, calibration=data, output=path, prove=False)
    assert paths[0].read_bytes() == paths[1].read_bytes() == paths[2].read_bytes()


def test_few_samples_are_shared_and_the_report_says_so(model: Path) -> None:
    report = qcompile.compile(model, calibration=samples(5), prove=False).report
    assert report.samples == 5
    assert any("samples are few (5)" in n for n in report.notices)


def test_synthetic_data_is_loud(model: Path) -> None:
    report = qcompile.compile(model, calibration="synthetic", prove=False).report
    assert report.synthetic_data
    assert any("made-up samples" in alarm for alarm in verdict(report).alarms)


def test_without_data_it_refuses(model: Path) -> None:
    with pytest.raises(UsageError, match="needs calibration data") as caught:
        qcompile.compile(model)
    assert "--calib" in caught.value.hint
    assert files(model.parent) == ["m.onnx"]


def test_a_recipe_without_calibration_needs_no_data(model: Path) -> None:
    artifact = qcompile.compile(model, NOTHING, overrides=["touch-nothing.word=hello"], prove=False)
    assert artifact.path.name == "m.nothing.onnx"
    assert artifact.report.notices == ["hello"]
    manifest = api.load(artifact.path).manifest
    assert manifest is not None
    assert manifest["recipe"]["steps"] == [{"touch-nothing": {"word": "hello"}}]
    assert manifest["data"] is None
    assert str(model.parent) not in json.dumps(manifest)


def test_nothing_is_overwritten_in_silence(model: Path) -> None:
    out = model.with_name("m.nothing.onnx")
    out.write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        qcompile.compile(model, NOTHING, prove=False)
    assert out.read_text() == "precious"
    qcompile.compile(model, NOTHING, overwrite=True, prove=False)
    with pytest.raises(OutputError, match="is the model itself"):
        qcompile.compile(model, NOTHING, output=model, overwrite=True, prove=False)


@pytest.mark.parametrize(
    ("arguments", "error", "expected"),
    [
        ({"recipe": "int8-statik"}, RecipeError, "did you mean 'int8-static'"),
        ({"recipe": "gone.yaml"}, RecipeError, "cannot be read"),
        ({"overrides": ["no-such.x=1"]}, RecipeError, "no pass 'no-such'"),
        ({"overrides": ["calibrate.methud=1"]}, RecipeError, "did you mean 'method'"),
        ({"target": "gpu"}, UsageError, "unknown target 'gpu'"),
        ({"report": "r.pdf"}, UsageError, "not '.pdf'"),
        ({"report": "/no/such/folder/r.html"}, OutputError, "folder"),
        ({"metric": "no_such_module:f"}, UsageError, "cannot be imported"),
        ({"calibration": []}, DataError, "no samples"),
        ({"calibration": [{"x": np.zeros((1, 3), np.float32)}]}, DataError, "must be 8"),
        ({"output": "/no/such/folder/o.onnx"}, OutputError, "folder"),
    ],
)
def test_errors_come_before_any_work(
    model: Path, arguments: dict[str, Any], error: type[QCompileError], expected: str
) -> None:
    with pytest.raises(error, match=expected):
        qcompile.compile(model, **({"calibration": samples(2)} | arguments))
    assert files(model.parent) == ["m.onnx"]


def test_a_recipe_file(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\nsteps:\n  - touch-nothing: {word: hi}\n")
    assert qcompile.compile(model, recipe, prove=False).path.name == "m.mine.onnx"
    recipe.write_text("name: mine\nsteps:\n  - touch-nothin\n")
    with pytest.raises(RecipeError, match="step 1, pass 'touch-nothin': unknown; did you mean 'touch-nothing'"):
        qcompile.compile(model, recipe, prove=False)


def test_every_packaged_recipe_is_valid() -> None:
    assert "int8-static" in recipe_names()
    for name in recipe_names():
        recipe = find_recipe(name)
        assert recipe.name == name
        assert recipe.description
        assert recipe.passes()


def test_reports_are_written(model: Path, tmp_path: Path) -> None:
    qcompile.compile(model, NOTHING, report=tmp_path / "r.json", prove=False)
    assert json.loads((tmp_path / "r.json").read_text())["recipe"] == "nothing"
    with pytest.raises(OutputError, match="exists already"):
        qcompile.compile(model, NOTHING, report=tmp_path / "r.json", output=tmp_path / "other.onnx", prove=False)
    report = qcompile.compile(model, NOTHING, report=tmp_path / "r.html", overwrite=True, prove=False).report
    assert report.page == str(tmp_path / "r.html")
    assert "</html>" in (tmp_path / "r.html").read_text()


def test_a_run_that_was_interrupted_goes_on(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "CHECKPOINT_SECONDS", 0.0)
    walks = 0
    read: list[int] = []

    def data() -> Iterator[dict[str, Any]]:
        nonlocal walks
        walks += 1
        for number, sample in enumerate(samples(12)):
            if walks == 3 and number == 7:  # after the check and the choice of held-out samples
                raise KeyboardInterrupt
            read.append(number)
            yield sample

    out = tmp_path / "out.onnx"
    with pytest.raises(KeyboardInterrupt) as caught:
        qcompile.compile(model, calibration=data, output=out, prove=False)
    assert "--resume" in caught.value.__notes__[0]
    assert files(tmp_path) == ["m.onnx", "out.onnx.checkpoint"]
    qcompile.compile(model, calibration=data, output=out, resume=True, prove=False)
    assert files(tmp_path) == ["m.onnx", "out.onnx"]
    qcompile.compile(model, calibration=samples(12), output=tmp_path / "whole.onnx", prove=False)
    assert out.read_bytes() == (tmp_path / "whole.onnx").read_bytes()


def test_nothing_to_resume_is_said(model: Path) -> None:
    report = qcompile.compile(model, calibration=samples(40), resume=True, prove=False).report
    assert any("no checkpoint" in notice for notice in report.notices)


def test_an_interrupted_proof_says_that_the_artifact_is_there(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qcompile.compiler.verification.prove.prove", stopped)
    with pytest.raises(KeyboardInterrupt) as caught:
        qcompile.compile(model, NOTHING)
    assert caught.value.__notes__ == [f"{model.with_name('m.nothing.onnx')} is written, but not proved."]


def test_progress_starts_and_finishes(model: Path) -> None:
    events: list[str] = []

    class Recorded:
        def start(self, what: str, total: int | None) -> None:
            events.append(what)

        def advance(self, steps: int = 1) -> None:
            pass

        def finish(self) -> None:
            events.append("")

    qcompile.compile(model, calibration=samples(4), progress=Recorded(), prove=False)
    assert events.count("") == len([e for e in events if e])
    assert events[0] == "Checking the samples"


def test_shapes_of_a_fixed_batch(tmp_path: Path) -> None:
    path = save(linear(batch=1), tmp_path / "m.onnx")
    with pytest.raises(DataError, match="dimension 0 must be 1"):
        qcompile.compile(path, calibration=[{"x": np.zeros((2, WIDTH), np.float32)}])


def test_a_sample_on_which_the_model_cannot_run(tmp_path: Path) -> None:
    reshape = onnx.helper.make_node("Reshape", ["x", "shape"], ["y"], name="reshape")
    graph = linear(width=512, nodes=[*linear().graph.node[:2], onnx.helper.make_node("Relu", ["sum"], ["z"]), reshape])
    graph.graph.node[3].input[0] = "z"
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, -1, 512], np.int64), "shape"))
    del graph.graph.output[0].type.tensor_type.shape.dim[:]
    graph.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 2
    graph.graph.output[0].type.tensor_type.shape.dim.add()
    graph.graph.output[0].type.tensor_type.shape.dim.add()
    model = save(graph, tmp_path / "m.onnx")
    with pytest.raises(DataError, match="cannot run on a calibration sample") as caught:
        qcompile.compile(model, calibration=[{"x": np.ones((3, 512), np.float32)}])
    assert caught.value.where == "x [3, 512]"
    assert files(tmp_path) == ["m.onnx"]


def test_strict_is_an_error_and_keeps_the_artifact(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "failures", lambda report: ["dispatch: nothing runs in int8"])
    with pytest.raises(ProofError, match="nothing runs in int8") as caught:
        qcompile.compile(model, NOTHING, strict=True, prove=False)
    assert caught.value.exit_code == 3
    assert model.with_name("m.nothing.onnx").exists()


def test_the_manifest_says_whose_times_placement_went_by(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    bench = Bench(device="another machine", provider="CPUExecutionProvider", versions="1")
    Timings(bench=bench).save(path)
    model = save(linear(), tmp_path / "m.onnx")
    artifact = qcompile.compile(model, calibration=samples(3), tuning=path, prove=False)
    manifest = api.load(artifact.path).manifest
    assert manifest is not None
    assert manifest["times"] == "another machine, CPUExecutionProvider, 1"
    assert str(tmp_path) not in json.dumps(manifest)
