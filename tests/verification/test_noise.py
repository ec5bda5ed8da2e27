"""Noise against closed forms: sums, outputs, and a layer measured with others and alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompile.compiler.context import SilentProgress
from qcompile.compiler.plan import Form, Unit
from qcompile.compiler.report import NOISELESS
from qcompile.compiler.verification.layers import measure_layers
from qcompile.compiler.verification.noise import Noise, compare_outputs
from qcompile.compiler.verification.reference import Reference
from qcompile.runtime.taps import Probe, body_values, tappable_values, without_weights
from tests.verification.qdq_models import Builder


def test_sqnr_and_cosine_of_a_known_pair() -> None:
    noise = Noise()
    noise.add(np.array([3.0, 4.0]), np.array([3.0, 3.0]))
    assert noise.sqnr == pytest.approx(10 * math.log10(25 / 1))
    assert noise.cosine == pytest.approx((9 + 12) / (5 * math.sqrt(18)))
    assert noise.largest == 1.0


def test_sums_do_not_depend_on_how_the_samples_are_cut() -> None:
    random = np.random.default_rng(0)
    y, z = random.standard_normal((2, 60))
    whole, parts = Noise(), Noise()
    whole.add(y, z)
    for start in range(0, 60, 7):
        parts.add(y[start : start + 7], z[start : start + 7])
    assert parts.sqnr == pytest.approx(whole.sqnr)
    assert parts.cosine == pytest.approx(whole.cosine)


def test_rounding_to_a_grid_has_the_noise_of_a_uniform_error() -> None:
    """Errors uniform in a step s have power s^2 / 12."""
    y, step = np.random.default_rng(0).uniform(-1, 1, 200_000), 1 / 128
    noise = Noise()
    noise.add(y, np.rint(y / step) * step)
    assert noise.sqnr == pytest.approx(10 * math.log10((1 / 3) / (step**2 / 12)), abs=0.05)


def test_the_ends_of_the_scale() -> None:
    equal, lost, broken, masked = Noise(), Noise(), Noise(), Noise()
    equal.add(np.ones(3), np.ones(3))
    lost.add(np.zeros(3), np.ones(3))
    broken.add(np.ones(3), np.array([1.0, np.nan, 1.0]))
    masked.add(np.array([1.0, -np.inf]), np.array([1.0, -np.inf]))
    assert (equal.sqnr, equal.cosine) == (NOISELESS, 1.0)
    assert (lost.sqnr, lost.cosine) == (-NOISELESS, 0.0)
    assert broken.sqnr == -NOISELESS
    assert masked.sqnr == NOISELESS


def test_outputs_are_matched_by_place_and_integers_do_not_decide() -> None:
    y = np.array([1.0, 2.0, 4.0], np.float32)
    exact = lambda _: {"scores": y, "best": np.array([2])}  # noqa: E731
    close = lambda _: {"scores": y * 1.01, "best": np.array([0])}  # noqa: E731
    outputs, proof = compare_outputs(exact, close, [{}, {}])
    assert [o.name for o in outputs] == ["scores", "best"]
    assert outputs[0].sqnr == pytest.approx(40, abs=0.01)
    assert outputs[1].max_error == 2
    assert proof.passed
    assert "'scores'" in proof.detail


def test_an_output_that_is_mostly_error_fails() -> None:
    y = np.arange(8, dtype=np.float32)
    _, proof = compare_outputs(lambda _: {"y": y}, lambda _: {"y": y[::-1]}, [{}])
    assert proof.passed is False


def test_an_output_of_another_shape_fails() -> None:
    _, proof = compare_outputs(lambda _: {"y": np.ones(3)}, lambda _: {"y": np.ones(4)}, [{}])
    assert proof.passed is False
    assert "(4,)" in proof.detail


class TestLayers:
    """x -> Add 1 -> a -> Add 1 -> b, where the artifact rounds every value to a coarse grid."""

    step = 0.5

    @pytest.fixture
    def models(self, tmp_path: Path) -> tuple[Path, Path]:
        b = Builder()
        one = b.constant("one", np.float32(1))
        b.node("Add", ["x", one], "a")
        b.node("Add", ["a", one], "b")
        b.node("Neg", ["b"], "y")
        onnx.save(b.model({"x": ["n"]}, ["y"]), tmp_path / "float.onnx")
        q = Builder(scale=self.step)
        one = q.constant("one", np.float32(1))
        q.node("Add", [q.convert("x"), one], "a")
        q.node("Add", [q.convert("a"), one], "b")
        q.node("Neg", [q.convert("b")], "y")
        onnx.save(q.model({"x": ["n"]}, ["y"]), tmp_path / "coarse.onnx")
        return tmp_path / "float.onnx", tmp_path / "coarse.onnx"

    def test_gathered_and_alone(self, models: tuple[Path, Path]) -> None:
        units = {
            f"n_{v}": Unit(f"n_{v}", "Add", Form.FULL, (before, None), v) for before, v in (("x", "a"), ("a", "b"))
        }
        samples = [{"x": np.random.default_rng(i).uniform(-5, 5, 50).astype(np.float32)} for i in range(3)]
        layers, skipped = measure_layers(Reference.of_file(models[0]), models[1], units, samples, SilentProgress())
        assert skipped == ""
        x = np.concatenate([s["x"] for s in samples]).astype(np.float64)
        grid = np.rint(x / self.step) * self.step  # adding 1 moves along the grid: no second error in the chain
        for layer, exact in zip(layers, (x + 1, x + 2), strict=True):
            expected = 10 * math.log10((exact**2).sum() / ((x - grid) ** 2).sum())
            assert layer.sqnr == pytest.approx(expected, abs=1e-3)
            assert layer.isolated_sqnr == pytest.approx(expected, abs=0.3)
            assert layer.cosine == pytest.approx(
                exact @ (grid + exact - x) / np.linalg.norm(exact) / np.linalg.norm(grid + exact - x), abs=1e-6
            )

    def test_a_unit_that_is_exact_alone_shows_the_noise_before_it_only_gathered(
        self, models: tuple[Path, Path]
    ) -> None:
        unit = Unit("n_b", "Add", Form.FULL, ("a", None), "b")
        samples = [{"x": np.array([0.2, 0.3, 1.7, 2.2], np.float32)}]
        samples[0]["x"][:] = np.rint(samples[0]["x"] * 2) / 2
        [layer], _ = measure_layers(Reference.of_file(models[0]), models[1], {"n_b": unit}, samples, SilentProgress())
        assert layer.isolated_sqnr == NOISELESS

    def test_a_value_that_the_float_model_lacks_is_counted(self, models: tuple[Path, Path]) -> None:
        unit = Unit("n_b", "Add", Form.FULL, ("a", None), "renamed")
        layers, skipped = measure_layers(
            Reference.of_file(models[0]), models[1], {"n_b": unit}, [{"x": np.ones(2, np.float32)}], SilentProgress()
        )
        assert layers == []
        assert skipped.startswith("1 whose output")


def test_a_probe_reads_inner_values_without_changing_the_model() -> None:
    b = Builder()
    b.node("Neg", ["x"], "inner")
    b.node("Abs", ["inner"], "y")
    model = b.model({"x": [2]}, ["y"])
    before = model.SerializeToString(deterministic=True)
    values = Probe(model, ["inner", "y"])({"x": np.array([1, -2], np.float32)})
    assert {k: v.tolist() for k, v in values.items()} == {"inner": [-1, 2], "y": [1, 2]}
    assert model.SerializeToString(deterministic=True) == before
    with pytest.raises(ValueError, match="nowhere"):
        Probe(model, ["nowhere"])


def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    return onnx.helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=nodes[-1].output[0])])


def test_values_of_branches_are_handed_out_and_empty_where_not_taken() -> None:
    deep = branch("deep", onnx.helper.make_node("Abs", ["hidden"], ["deepest"]))
    flat = branch("flat", onnx.helper.make_node("Identity", ["hidden"], ["same"]))
    inner = onnx.helper.make_node("If", ["other"], ["inner"], then_branch=deep, else_branch=flat)
    taken = branch("taken", onnx.helper.make_node("Neg", ["x"], ["hidden"]), inner)
    integer = onnx.helper.make_node("Shape", ["x"], ["shape"])
    passed = branch("passed", integer, onnx.helper.make_node("Cast", ["shape"], ["cast"], to=1))
    b = Builder()
    b.node("If", ["flag"], "y", then_branch=taken, else_branch=passed)
    model = b.model({"x": [2], "flag": [], "other": []}, ["y"])
    for name in ("flag", "other"):
        next(i for i in model.graph.input if i.name == name).type.tensor_type.elem_type = onnx.TensorProto.BOOL
    assert tappable_values(model) == {
        "x", "flag", "other", "y", "hidden", "inner", "deepest", "same", "shape", "cast",
    }  # fmt: skip
    assert body_values(model) == {"hidden", "inner", "deepest", "same", "shape", "cast"}
    probe = Probe(model, ["hidden", "deepest", "same", "shape", "y"])
    x = np.array([1, -2], np.float32)
    values = probe({"x": x, "flag": np.array(True), "other": np.array(True)})
    assert {k: v.tolist() for k, v in values.items()} == {
        "hidden": [-1, 2], "deepest": [1, 2], "same": [], "shape": [], "y": [1, 2],
    }  # fmt: skip
    values = probe({"x": x, "flag": np.array(False), "other": np.array(True)})
    assert {k: v.tolist() for k, v in values.items()} == {
        "hidden": [], "deepest": [], "same": [], "shape": [2], "y": [2],
    }  # fmt: skip


def test_values_of_loops_and_names_of_two_values_are_not_tapped() -> None:
    body = branch("body", onnx.helper.make_node("Neg", ["x"], ["hidden"]))
    b = Builder()
    b.node("If", ["flag"], "y", then_branch=body, else_branch=body)
    b.node("Loop", ["n", "flag"], "z", body=branch("turn", onnx.helper.make_node("Neg", ["x"], ["turned"])))
    model = b.model({"x": [2], "flag": [], "n": []}, ["y"])
    assert tappable_values(model) == {"x", "flag", "n", "y", "z"}
    assert body_values(model) == {"hidden", "turned"}


def test_weights_can_be_fed() -> None:
    w = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    b = Builder()
    b.constant("w", w)
    b.node("MatMul", ["x", "w"], "p")
    b.node("Neg", ["p"], "y")
    model = b.model({"x": [1, 32]}, ["y"])
    weights = without_weights(model, Path())
    assert list(weights) == ["w"]
    assert len(model.graph.initializer) == 0
    x = np.ones((1, 32), np.float32)
    np.testing.assert_allclose(Probe(model, ["p"], weights=weights)({"x": x})["p"], x @ w, rtol=1e-5)
