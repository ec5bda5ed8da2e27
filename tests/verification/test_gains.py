"""What float layers would buy: the switched model against one that really leaves the layer in float."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

import qcompile
from qcompile.compiler.context import SilentProgress
from qcompile.compiler.plan import Form, Unit
from qcompile.compiler.report import FloatGains
from qcompile.compiler.targets import target_named
from qcompile.compiler.verification.gains import measure_gains
from qcompile.compiler.verification.layers import measure_layers
from qcompile.compiler.verification.noise import runner
from qcompile.compiler.verification.prove import verify
from qcompile.compiler.verification.reference import Reference
from qcompile.runtime.providers import CPU
from tests.verification.qdq_models import Builder

Sample = dict[str, np.ndarray[Any, Any]]


def convolutions(folder: Path) -> tuple[Path, list[Sample]]:
    """Four convolutions with BatchNorm and Relu in a row; the second has one channel of large weights."""
    random = np.random.default_rng(1)
    nodes, weights, before = [], [], "x"
    for i in range(4):
        weight = random.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12
        weight[:, 0] *= 40 if i == 1 else 1
        norm = [np.abs(random.standard_normal(16)) + 0.5 for _ in range(4)]
        names = [f"{n}{i}" for n in ("gamma", "beta", "mean", "variance")]
        weights += [numpy_helper.from_array(a.astype(np.float32), n) for n, a in zip(names, norm, strict=True)]
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes += [
            h.make_node("Conv", [before, f"w{i}"], [f"c{i}"], name=f"conv{i}", pads=[1, 1, 1, 1]),
            h.make_node("BatchNormalization", [f"c{i}", *names], [f"n{i}"], name=f"norm{i}"),
            h.make_node("Relu", [f"n{i}"], [f"r{i}"], name=f"relu{i}"),
        ]
        before = f"r{i}"
    nodes.append(h.make_node("GlobalAveragePool", [before], ["y"], name="pool"))
    shape = [1, 16, 24, 24]
    graph = h.make_graph(
        nodes, "convs", [h.make_tensor_value_info("x", T.FLOAT, shape)],
        [h.make_tensor_value_info("y", T.FLOAT, [1, 16, 1, 1])], weights,
    )  # fmt: skip
    path = folder / "convs.onnx"
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10), path)
    return path, [{"x": random.standard_normal(shape).astype(np.float32)} for _ in range(8)]


def sqnr(exact: Path, compiled: Path, samples: list[Sample]) -> float:
    expected, given = (np.stack([runner(p, CPU)(s)["y"] for s in samples]) for p in (exact, compiled))
    return float(10 * np.log10((expected**2).sum() / ((expected - given) ** 2).sum()))


def found_gains(artifact: qcompile.Artifact) -> FloatGains:
    assert artifact.report.float_gains is not None
    return artifact.report.float_gains


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[qcompile.Artifact, list[Sample]]:
    model, samples = convolutions(tmp_path_factory.mktemp("convs"))
    return qcompile.compile(model, calibration=samples), samples


def test_weights_into_which_a_norm_was_folded_are_drawn(compiled: tuple[qcompile.Artifact, list[Sample]]) -> None:
    drawn = compiled[0].report.weights
    assert len(drawn) == 4
    assert all(35 < w.sqnr < 60 for w in drawn), "8 bits per channel"


class TestConvolutions:
    def test_the_gain_is_that_of_a_model_which_keeps_the_layer_in_float(
        self, compiled: tuple[qcompile.Artifact, list[Sample]], tmp_path: Path
    ) -> None:
        artifact, samples = compiled
        model, gains = Path(artifact.report.model), found_gains(artifact)
        few = samples[: gains.samples]
        before = sqnr(model, artifact.path, few)
        assert gains.sqnr == pytest.approx(before, abs=0.2)
        assert {g.node for g in gains.gains} >= {f"conv{i}" for i in range(4)}
        for record in gains.gains[:2]:
            kept = qcompile.compile(
                model, calibration=samples, output=tmp_path / f"{record.node}.onnx", prove=False,
                overrides=[f"place-int8.keep-float=[{record.node}]"],
            )  # fmt: skip
            assert record.gain == pytest.approx(sqnr(model, kept.path, few) - before, abs=0.3)

    def test_gains_are_sorted_and_know_what_float_costs(self, compiled: tuple[qcompile.Artifact, list[Sample]]) -> None:
        gains = found_gains(compiled[0])
        assert [g.gain for g in gains.gains] == sorted((g.gain for g in gains.gains), reverse=True)
        assert all(g.float_ms is not None for g in gains.gains)
        assert next(g for g in gains.gains if g.node == "conv0").float_ms > 0  # type: ignore[operator]

    def test_the_setting_can_be_pasted(self, compiled: tuple[qcompile.Artifact, list[Sample]], tmp_path: Path) -> None:
        artifact, samples = compiled
        gains = found_gains(artifact)
        assert gains.proposed
        option, quoted = gains.setting.split(" ", 1)
        assert option == "--set"
        assert json.loads(quoted.strip("'").partition("=")[2]) == gains.proposed
        again = qcompile.compile(
            artifact.report.model, calibration=samples, output=tmp_path / "again.onnx", overrides=[quoted.strip("'")]
        )
        assert set(gains.proposed) <= {record.node for record in again.report.kept_float}
        assert found_gains(again).sqnr >= gains.sqnr + gains.together - 0.3
        assert all(f'"{node}"' in found_gains(again).setting for node in gains.proposed if found_gains(again).proposed)


def test_a_float_layer_gives_the_noise_of_the_others(tmp_path: Path) -> None:
    """y = x w1 w2, both weights rounded coarsely: with both in float nothing is left but what x loses."""
    random = np.random.default_rng(0)
    w1, w2 = (random.standard_normal((8, 8)).astype(np.float32) for _ in range(2))
    exact, rounded = Builder(), Builder()
    for builder, step in ((exact, 0.0), (rounded, 0.5)):
        for name, w in (("w1", w1), ("w2", w2)):
            builder.constant(name, (np.rint(w / step) * step).astype(np.float32) if step else w)
        builder.node("MatMul", ["x", "w1"], "a")
        builder.node("MatMul", ["a", "w2"], "y")
    for builder, name in ((exact, "float.onnx"), (rounded, "rounded.onnx")):
        onnx.save(builder.model({"x": [4, 8]}, ["y"]), tmp_path / name)
    units = {f"n_{v}": Unit(f"n_{v}", "MatMul", Form.INPUTS, (None, None), v) for v in ("a", "y")}
    samples = [{"x": random.standard_normal((4, 8)).astype(np.float32)} for _ in range(3)]
    models = tmp_path / "float.onnx", tmp_path / "rounded.onnx"
    run = runner(models[0], CPU)
    expected = [run(s) for s in samples]
    reference = Reference.of_file(models[0])
    found = measure_gains(reference, models[1], units, [], samples, expected, None, SilentProgress())
    assert found is not None
    x = np.concatenate([s["x"] for s in samples]).astype(np.float64)
    r1, r2 = (np.rint(w / 0.5) * 0.5 for w in (w1, w2))

    def noise(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
        y = x @ w1 @ w2
        return 10 * math.log10((y**2).sum() / ((y - x @ a @ b) ** 2).sum())

    assert found.sqnr == pytest.approx(noise(r1, r2), abs=1e-3)
    gains = {g.node: g.gain for g in found.gains}
    assert gains["n_a"] == pytest.approx(noise(w1, r2) - noise(r1, r2), abs=1e-3)
    assert gains["n_y"] == pytest.approx(noise(r1, w2) - noise(r1, r2), abs=1e-3)
    assert found.proposed == [g.node for g in found.gains if g.gain >= 0.5]
    assert all(g.float_ms is None for g in found.gains)


def test_nothing_to_measure_is_no_finding(tmp_path: Path) -> None:
    builder = Builder()
    builder.node("Neg", ["x"], "y")
    onnx.save(builder.model({"x": [2]}, ["y"]), tmp_path / "m.onnx")
    model = tmp_path / "m.onnx"
    assert measure_gains(Reference.of_file(model), model, {}, [], [], [], None, SilentProgress()) is None


def in_branches(folder: Path) -> tuple[Path, list[Sample]]:
    """The convolutions in a branch of an If, with a weight of the main graph; the other branch halves x."""
    whole, samples = convolutions(folder)
    inner = onnx.load(whole).graph
    outer = [i for i in inner.initializer if i.name == "w3"]
    inside = [i for i in inner.initializer if i.name != "w3"]
    untyped = onnx.ValueInfoProto(name="y")
    taken = h.make_graph(list(inner.node), "taken", [], [untyped], inside)
    mean = h.make_node("ReduceMean", ["x", "axes"], ["mean"], name="mean", keepdims=1)
    axes = numpy_helper.from_array(np.array([2, 3], np.int64), "axes")
    other = h.make_graph([mean], "other", [], [onnx.ValueInfoProto(name="mean")], [axes])
    nodes = [
        h.make_node("ReduceMax", ["x"], ["largest"], name="largest", keepdims=0),
        h.make_node("Greater", ["largest", "zero"], ["flag"], name="flag"),
        h.make_node("If", ["flag"], ["z"], name="if", then_branch=taken, else_branch=other),
    ]
    outer.append(numpy_helper.from_array(np.float32(0), "zero"))
    graph = h.make_graph(
        nodes, "branches", [inner.input[0]], [h.make_tensor_value_info("z", T.FLOAT, [1, 16, 1, 1])], outer
    )
    path = folder / "branches.onnx"
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10), path)
    samples[1] = {"x": -np.abs(samples[1]["x"])}
    return path, samples


def test_layers_in_branches_are_measured(tmp_path: Path) -> None:
    model, samples = in_branches(tmp_path)
    whole_range = ["calibrate.method=min-max"]
    branched = qcompile.compile(model, calibration=samples, overrides=whole_range).report
    assert all("not measured" not in proof.detail for proof in branched.proofs)
    flat, straight = convolutions(tmp_path)[0], [s for i, s in enumerate(samples) if i != 1]
    report = qcompile.compile(flat, calibration=straight, overrides=whole_range).report
    alone = {layer.node: layer.isolated_sqnr for layer in report.layers}
    seen = {layer.node: layer for layer in branched.layers}
    assert {f"conv{i}" for i in range(4)} <= set(seen)
    for node in ("conv1", "conv2"):
        assert seen[node].isolated_sqnr == pytest.approx(alone[node], abs=1.5)
        assert seen[node].sqnr is not None
    assert branched.float_gains is not None
    assert branched.float_gains.gains[0].gain > 0.5


def test_a_branch_that_no_sample_takes_shows_no_figures(tmp_path: Path) -> None:
    model, samples = in_branches(tmp_path)
    compiled = qcompile.compile(model, calibration=samples, prove=False)
    report = verify(compiled.path, target_named("cpu"), against=model, samples=[samples[1]])
    assert {layer.sqnr for layer in report.layers} == {None}
    assert {layer.isolated_sqnr for layer in report.layers} == {None}


def test_layers_are_held_against_the_model_as_it_was_quantized(tmp_path: Path) -> None:
    """BatchNorm folds into the first convolution and its value takes other numbers: the figures stay right."""
    model, samples = convolutions(tmp_path)
    report = qcompile.compile(model, calibration=samples).report
    assert all(layer.isolated_sqnr is not None and layer.isolated_sqnr > 25 for layer in report.layers)


def test_a_model_whose_channels_were_scaled_has_the_same_figures(tmp_path: Path) -> None:
    """x W1 s, then W2 / s: against the unscaled model the first layer would look lost."""
    random = np.random.default_rng(2)
    w1, w2 = (random.standard_normal((64, 64)).astype(np.float32) / 8 for _ in range(2))
    scale = np.geomspace(0.1, 10, 64).astype(np.float32)

    def chain(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> onnx.ModelProto:
        builder = Builder()
        builder.constant("w1", first)
        builder.constant("w2", second)
        builder.node("MatMul", ["x", "w1"], "a")
        builder.node("MatMul", ["a", "w2"], "y")
        return builder.model({"x": [4, 64]}, ["y"])

    rounded = [np.rint(w * 64) / 64 for w in (w1 * scale, w2 / scale[:, None])]
    onnx.save(chain(*(w.astype(np.float32) for w in rounded)), tmp_path / "rounded.onnx")
    units = {f"n_{v}": Unit(f"n_{v}", "MatMul", Form.INPUTS, (None, None), v) for v in ("a", "y")}
    samples = [{"x": random.standard_normal((4, 64)).astype(np.float32)} for _ in range(2)]
    state = Reference.of_state(ir.from_proto(chain(w1 * scale, w2 / scale[:, None])))
    layers, _ = measure_layers(state, tmp_path / "rounded.onnx", units, samples, SilentProgress())
    exact, found = (np.concatenate([s["x"] @ w for s in samples]) for w in (w1 * scale, rounded[0]))
    expected = 10 * math.log10((exact.astype(np.float64) ** 2).sum() / ((exact - found) ** 2).sum())
    assert layers[0].sqnr == pytest.approx(expected, abs=0.05)
    assert layers[0].isolated_sqnr == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(("per_token", "form"), [("false", Form.DYNAMIC), ("true", Form.BLOCKS)])
def test_units_that_quantize_their_inputs_as_they_run_are_measured(per_token: str, form: Form, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    builder = Builder()
    builder.constant("w1", random.standard_normal((256, 256)).astype(np.float32))
    builder.constant("w2", random.standard_normal((256, 256)).astype(np.float32))
    builder.node("MatMul", ["x", "w1"], "a")
    builder.node("Tanh", ["a"], "t")
    builder.node("MatMul", ["t", "w2"], "y")
    onnx.save(builder.model({"x": [64, 256]}, ["y"]), tmp_path / "m.onnx")
    samples = [{"x": random.standard_normal((64, 256)).astype(np.float32)} for _ in range(4)]
    report = qcompile.compile(
        tmp_path / "m.onnx", "int8-dynamic", calibration=samples, overrides=[f"place-dynamic.per-token={per_token}"]
    ).report
    assert {unit.form for unit in report.units} == {form}
    assert all(layer.isolated_sqnr is not None for layer in report.layers)
    assert report.float_gains is not None
    assert {g.node for g in report.float_gains.gains} == {"n_a", "n_y"}
    assert report.float_gains.setting.startswith("--set 'place-dynamic.keep-float=")
    assert report.float_gains.together > 3
