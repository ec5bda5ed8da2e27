"""The proofs together: what ends in the report, and that a broken one never raises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext, SilentProgress
from qcompile.compiler.report import Report
from qcompile.compiler.targets import target_named
from qcompile.compiler.verification import prove as proving
from qcompile.compiler.verification import speed as speed_module
from qcompile.compiler.verification.metric import measure, prove_metric
from qcompile.compiler.verification.prove import prove, verify
from qcompile.errors import DataError
from qcompile.runtime.benchmark import Timing
from qcompile.runtime.device import Device
from qcompile.runtime.model_header import MANIFEST
from qcompile.runtime.providers import CPU, CUDA
from tests.verification.qdq_models import Builder, convolutions

SAMPLES = [{"x": np.random.default_rng(i).uniform(-1, 1, (1, 4, 8, 8)).astype(np.float32)} for i in range(2)]


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "_TIMED", 0.0)


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """A float network and its Q/DQ form."""
    quantized = convolutions()
    b, constants = Builder(), {i.name: onnx.numpy_helper.to_array(i) for i in quantized.graph.initializer}

    def dequantized(name: str) -> np.ndarray:  # type: ignore[type-arg]
        codes = constants[f"{name}_quantized"].astype(np.float32)
        return codes * constants[f"{name}_scale"].reshape(-1, *[1] * (codes.ndim - 1))

    for name in ("W1", "b1", "W2"):
        b.constant(name, dequantized(name))
    b.node("Conv", ["x", "W1", "b1"], "c1", pads=[1, 1, 1, 1])
    b.node("Relu", ["c1"], "r1")
    b.node("Conv", ["r1", "W2"], "c2")
    b.node("Softmax", ["c2"], "y", axis=1)
    onnx.save(b.model({"x": [1, 4, 8, 8]}, ["y"]), tmp_path / "float.onnx")
    onnx.save(quantized, tmp_path / "int8.onnx")
    return tmp_path / "float.onnx", tmp_path / "int8.onnx"


@pytest.mark.parametrize(
    ("target", "device", "there", "on"),
    [
        ("cuda", Device.CUDA, True, CUDA),
        ("cuda", Device.CUDA, False, CPU),
        ("cuda", Device.CPU, True, CPU),
        ("tensorrt", Device.CUDA, True, CPU),
        ("cpu", Device.CUDA, True, CPU),
    ],
)
def test_layers_are_measured_on_the_gpu_that_compiles(
    target: str,
    device: Device,
    there: bool,
    on: str,
    models: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proving, "why_not_loaded", lambda _: "" if there else "no driver")
    asked: list[str] = []
    for name in ("measure_layers", "measure_gains"):
        monkeypatch.setattr(proving, name, lambda *given: (asked.append(given[-1]), ([], ""))[1])
    monkeypatch.setattr(proving._Prover, "runner", lambda self, model: lambda _: {"y": np.ones(1, np.float32)})
    report = Report(model="m", artifact="a", recipe="r", target=target, versions={}, data="", samples=2)
    prover = proving._Prover(report, models[1], target_named(target), SilentProgress(), device=device)
    prover.numerics(models[0], SAMPLES)
    assert asked == [on, on]


def test_verify_tells_everything_about_a_foreign_model(models: tuple[Path, Path]) -> None:
    report = verify(models[1], target_named("cpu"), against=models[0], samples=SAMPLES)
    assert [p.name for p in report.proofs] == ["validity", "legality", "dispatch", "numerics", "speed"]
    proofs = {p.name: p.passed for p in report.proofs}
    assert proofs["validity"]
    assert proofs["legality"]
    assert proofs["dispatch"]
    assert [u.kernel for u in report.units] == ["QLinearConv", "QLinearConv"]
    assert [o.name for o in report.outputs] == ["y"]
    assert [layer.value for layer in report.layers] == ["r1", "c2"]
    assert [(layer.isolated_sqnr or 0) > 20 for layer in report.layers] == [True, True], report.layers
    assert report.speed is not None
    assert report.speed.slowest
    group = next(t for t in report.tensors if t.name == "Conv weights")
    assert group.before > group.after
    assert [p.node for p in report.placement] == ["n_c1", "n_r1", "n_c2", "n_y"]


def test_without_a_float_model_the_graph_alone_is_proved(models: tuple[Path, Path]) -> None:
    report = verify(models[1], target_named("cpu"))
    assert [p.name for p in report.proofs] == ["validity", "legality", "dispatch"]


def test_a_sample_that_does_not_fit_is_a_failed_proof_and_no_traceback(models: tuple[Path, Path]) -> None:
    report = verify(models[1], target_named("cpu"), against=models[0], samples=[{"x": np.ones((2, 2), np.float32)}])
    failed = {p.name for p in report.failed}
    assert {"numerics", "speed"} <= failed


@pytest.mark.parametrize(
    ("error", "passed", "said"),
    [
        (DataError("ONNX Runtime could not run the model: std::bad_alloc"), None, "too little memory"),
        (MemoryError(), None, "too little memory"),
        (DataError("input 'x' is missing"), False, "input 'x' is missing"),
        (ValueError("seven"), False, "broke down: ValueError: seven"),
    ],
)
def test_a_lack_of_memory_says_nothing_about_the_model(
    models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, error: Exception, passed: bool | None, said: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(proving, "compare_outputs", fail)
    report = verify(models[1], target_named("cpu"), against=models[0], samples=SAMPLES)
    [numerics] = [p for p in report.proofs if p.name == "numerics"]
    assert numerics.passed is passed
    assert said in numerics.detail


def test_no_samples_leave_the_numbers_open(models: tuple[Path, Path]) -> None:
    context = CompileContext(target=target_named("cpu"), float_model=models[0])
    report = Report(model="m", artifact="a", recipe="r", target="cpu", versions={}, data="none")
    prove(report, context, models[1])
    assert {p.name: p.passed for p in report.proofs}["numerics"] is None


def test_a_pattern_of_zeros_is_counted(tmp_path: Path) -> None:
    weight = np.tile(np.array([[1, 0, 0, 2, 0, 3, 0, 1]], np.float32), (8, 1)).T
    for name, matrix in (("sparse", weight), ("dense", weight + 1)):
        b = Builder()
        b.constant("W", matrix)
        b.node("MatMul", ["x", "W"], "y")
        onnx.save(b.model({"x": ["n", 8]}, ["y"]), tmp_path / f"{name}.onnx")
    sparse, dense = (tmp_path / f"{name}.onnx" for name in ("sparse", "dense"))
    samples = [{"x": np.ones((2, 8), np.float32)}]
    found = {}
    for model, against in ((sparse, sparse), (dense, sparse), (sparse, dense)):
        report = verify(model, target_named("cpu"), against=against, samples=samples)
        found[model, against] = {p.name: p.passed for p in report.proofs}.get("sparsity")
    assert found == {(sparse, sparse): True, (dense, sparse): False, (sparse, dense): None}


def test_an_edit_on_purpose_is_what_has_to_be_kept_and_has_its_price(models: tuple[Path, Path], tmp_path: Path) -> None:
    """The given model is another one than the float form of the artifact, by far."""
    other = onnx.load(models[0])
    weight = next(i for i in other.graph.initializer if i.name == "W2")
    weight.CopyFrom(onnx.numpy_helper.from_array(-4 * onnx.numpy_helper.to_array(weight), "W2"))
    onnx.save(other, tmp_path / "given.onnx")

    def proved(**edited: Any) -> Report:
        report = Report(model="m", artifact="a", recipe="r", target="cpu", versions={}, data="none")
        given = tmp_path / "given.onnx"
        made = CompileContext(target=target_named("cpu"), float_model=given, held_out=SAMPLES, **edited)
        made.metric = lambda run: float(run(SAMPLES[0])["y"][0, 0, 0, 0])
        prove(report, made, models[1])
        return report

    plain, edited = proved(), proved(unquantized=ir.load(models[0]), edits=["negate", "shrink", "negate"])
    assert "numerics" in {p.name for p in plain.failed}
    assert plain.edit is None
    [numerics] = [p for p in edited.proofs if p.name == "numerics"]
    assert numerics.passed
    assert numerics.detail.endswith("against the float model as edited by negate, shrink")
    assert edited.outputs[0].sqnr > 20
    assert all((layer.sqnr or 0) > 20 for layer in edited.layers)
    assert edited.edit is not None
    assert edited.edit.outputs[0].sqnr < 10
    assert edited.metric_float is not None
    assert edited.metric_compiled is not None
    assert edited.edit.metric == pytest.approx(edited.metric_compiled, rel=0.1)
    assert edited.edit.metric != pytest.approx(edited.metric_float, rel=0.1)


def test_noise_of_an_artifact_that_was_edited_refutes_nothing(models: tuple[Path, Path]) -> None:
    edited = onnx.load(models[0])
    weight = next(i for i in edited.graph.initializer if i.name == "W2")
    weight.CopyFrom(onnx.numpy_helper.from_array(-4 * onnx.numpy_helper.to_array(weight), "W2"))
    found = []
    for edits in ([], ["prune"]):
        onnx.helper.set_model_props(edited, {MANIFEST: json.dumps({"edits": edits} if edits else {"recipe": {}})})
        onnx.save(edited, models[1])
        report = verify(models[1], target_named("cpu"), against=models[0], samples=SAMPLES)
        found += [proof for proof in report.proofs if proof.name == "numerics"]
        assert bool(report.kept_float) == (not edits), "who edits may want no codes"
    assert [proof.passed for proof in found] == [False, None]
    assert "prune changed the float model on purpose" in found[1].detail


def test_a_slower_model_is_said_to_be_slower_with_its_costly_nodes(
    models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    timings = {"float": Timing((1.0, 1.1, 1.0)), "compiled": Timing((2.0, 2.2, 2.1))}
    monkeypatch.setattr(speed_module, "interleaved", lambda *_: timings)
    report = verify(models[1], target_named("cpu"), against=models[0], samples=SAMPLES)
    proof = next(p for p in report.proofs if p.name == "speed")
    assert proof.passed is False
    assert "SLOWER" in proof.detail
    assert "n_c1" in proof.detail
    assert [p.name for p in report.failed] == ["speed"]
    assert report.speed is not None
    assert report.speed.ratio == pytest.approx(1.0 / 2.1)


def test_a_difference_that_comes_and_goes_is_no_failed_proof(
    models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The medians differ by a tenth, but in two turns of five the compiled model was the faster one."""
    timings = {"float": Timing((1.0, 1.4, 1.0, 1.3, 1.0)), "compiled": Timing((1.1, 1.1, 1.1, 1.1, 1.1))}
    monkeypatch.setattr(speed_module, "interleaved", lambda *_: timings)
    report = verify(models[1], target_named("cpu"), against=models[0], samples=SAMPLES)
    proof = next(p for p in report.proofs if p.name == "speed")
    assert proof.passed
    assert "slower in 3 of 5 turns" in proof.detail


class TestMetric:
    def test_both_models_are_measured(self) -> None:
        first = lambda run: float(run({})["y"][0])  # noqa: E731
        before = measure(first, lambda _: {"y": np.array([0.80])}, "float")
        after, proof = prove_metric(first, before, lambda _: {"y": np.array([0.79])})
        assert (before, after, proof.passed) == (0.80, 0.79, True)

    def test_a_large_loss_fails(self) -> None:
        _, proof = prove_metric(lambda run: float(run({})["y"][0]), 0.8, lambda _: {"y": np.array([0.5])})
        assert proof.passed is False

    def test_a_metric_that_raises_is_named(self) -> None:
        def metric(run: object) -> float:
            raise KeyError("label")

        with pytest.raises(DataError, match="float model: KeyError"):
            measure(metric, lambda _: {}, "float")

    def test_nan_is_no_measure(self) -> None:
        with pytest.raises(DataError, match="nan"):
            measure(lambda _: float("nan"), lambda _: {}, "float")
