"""Channels that matter least go, tensors shrink, and the layers behind make good for what is gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext
from qcompile.compiler.printer import print_model
from qcompile.errors import DataError, RecipeError
from qcompile.passes.transform.prune_channels import PruneChannels
from qcompile.passes.transform.pruning import latency
from qcompile.passes.transform.pruning.latency import Race
from qcompile.runtime.benchmark import Timing
from qcompile.runtime.providers import CPU
from tests.golden import assert_golden
from tests.passes.harness import NAMED, Arrays, assert_close, context, model_of, outputs, run
from tests.passes.llama import WIDTH, llama
from tests.passes.samples import Samples

INPUTS, HIDDEN = 12, 16
TEXT = f"""
<ir_version: 10, opset_import: ["": 20]>
mlp (float[N, {INPUTS}] x) => (float[N, 6] y) {{
  a = Gemm (x, w1, b1)
  h = Gelu (a)
  y = Gemm (h, w2, b2)
}}
"""


def mlp(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {"w1": (INPUTS, HIDDEN), "b1": (HIDDEN,), "w2": (HIDDEN, 6), "b2": (6,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def rows(count: int = 64, seed: int = 1) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, INPUTS)).astype(np.float32)


def with_samples(*samples: npt.NDArray[np.float32]) -> CompileContext:
    on = context()
    on.calibration = Samples(*samples)
    return on


def pruned(weights: Arrays, on: CompileContext, **options: object) -> ir.Model:
    model = model_of(TEXT, weights)
    run(model, *NAMED, PruneChannels.model_validate({"multiple": 1, **options}), on=on)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def shape(model: ir.Model, name: str) -> tuple[int, ...]:
    return tuple(int(d) for d in model.graph.initializers[name].shape.numpy())  # type: ignore[union-attr]


def error(model: ir.Model, weights: Arrays, x: npt.NDArray[np.float32]) -> float:
    y, z = outputs(model_of(TEXT, weights), {"x": x})[0], outputs(model, {"x": x})[0]
    return float(np.square(y - z).sum() / np.square(y - y.mean(axis=0)).sum())


def with_dead_channels() -> Arrays:
    weights, dead = mlp(), [2, 3, 11, 12]
    weights["w1"][:, dead] = 0
    weights["b1"][dead] = 0
    weights["w2"][dead] = 0
    return weights


@pytest.mark.parametrize("importance", ["activation", "magnitude", "taylor"])
def test_dead_channels_go_first_and_nothing_changes(importance: str, one_thread: None) -> None:
    weights = with_dead_channels()
    model = pruned(weights, with_samples(rows()), budget="ratio", importance=importance, refit=False)
    assert shape(model, "w1") == (INPUTS, HIDDEN - 4)
    assert error(model, weights, rows(seed=5)) == 0


@pytest.mark.parametrize("importance", ["activation", "taylor"])
def test_a_constant_channel_goes_first_and_its_mean_stays(importance: str, one_thread: None) -> None:
    weights, constant = mlp(), [0, 7, 9, 13]
    weights["w1"][:, constant] = 0
    weights["b1"][constant] = 3
    model = pruned(weights, with_samples(rows()), budget="ratio", importance=importance, refit=False)
    assert error(model, weights, rows(seed=5)) < 1e-10


def test_a_copy_of_a_channel_is_no_loss_after_refitting() -> None:
    weights = mlp()
    weights["w1"][:, 8:], weights["b1"][8:] = weights["w1"][:, :8], weights["b1"][:8]
    weights["w2"][8:] = weights["w2"][:8] / 100  # least important, but not nothing
    x = rows(1600)
    plain, refitted = (pruned(weights, with_samples(x), budget="flops", remove=0.5, refit=r) for r in (False, True))
    assert shape(refitted, "w1") == (INPUTS, 8)
    assert error(refitted, weights, x) < 1e-2 * error(plain, weights, x)


def test_refitting_is_the_least_squares_solution() -> None:
    weights, x = mlp(), rows(1600)
    model = pruned(weights, with_samples(x))
    hidden = outputs(_up_to_hidden(model), {"x": x})[0].astype(np.float64)
    design, y = np.column_stack([hidden, np.ones(len(x))]), outputs(model_of(TEXT, weights), {"x": x})[0]
    best = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    found = y - outputs(model, {"x": x})[0]
    assert np.abs(found.mean(axis=0)).max() < 1e-5
    assert np.square(found).sum() < 1.01 * np.square(best).sum()


def _up_to_hidden(model: ir.Model) -> ir.Model:
    copy = model.clone()
    hidden = next(n.outputs[0] for n in copy.graph if n.op_type == "Gelu")
    copy.graph.outputs[:] = [hidden]
    return copy


@pytest.mark.parametrize("remove", [0.1, 0.3, 0.5])
def test_flops_meet_the_budget_with_the_fewest_channels(remove: float) -> None:
    hidden = shape(pruned(mlp(), with_samples(rows()), remove=remove), "w1")[1]
    assert 1 - hidden / HIDDEN >= remove > 1 - (hidden + 1) / HIDDEN


def test_what_stays_is_a_multiple() -> None:
    for multiple, left in ((4, 12), (5, 10), (8, 8)):
        assert shape(pruned(mlp(), with_samples(rows()), remove=0.2, multiple=multiple), "w1") == (INPUTS, left)


def test_latency_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def saved(self: Race, model: ir.Model) -> float:
        return 0.8 * (1 - shape(model, "w1")[1] / HIDDEN)

    monkeypatch.setattr(Race, "saved", saved)
    on = with_samples(rows())
    assert shape(pruned(mlp(), on, remove=0.3, budget="latency"), "w1") == (INPUTS, 10)
    assert any("30% of the time" in text and "30% were asked for" in text for text in on.notices)
    with pytest.raises(RecipeError, match="of the time: all channels that may go take 60%"):
        pruned(mlp(), with_samples(rows()), remove=0.75, budget="latency")


def test_a_resumed_run_may_measure_other_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    x = rows()

    def found(share: float, checkpoint: str, resume: bool) -> ir.Model:
        monkeypatch.setattr(Race, "saved", lambda _, model: share * (1 - shape(model, "w1")[1] / HIDDEN))
        on = with_samples(x)
        on.checkpoint, on.resume = tmp_path / checkpoint, resume
        return pruned(mlp(), on, remove=0.2, budget="latency")

    interrupted, resumed, fresh = found(0.8, "a", False), found(0.5, "a", True), found(0.5, "b", False)
    assert [shape(model, "w1")[1] for model in (interrupted, resumed, fresh)] == [12, 9, 9]
    assert_close(outputs(fresh, {"x": x}), outputs(resumed, {"x": x}), 0)


def test_a_slow_moment_hits_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    turns = {"first": Timing((10.0, 10.0, 10.0, 90.0, 90.0)), "pruned": Timing((6.0, 6.0, 54.0, 54.0, 54.0))}
    monkeypatch.setattr(latency, "interleaved", lambda *_: turns)
    model = model_of(TEXT, mlp())
    assert Race(model, {}, CPU, tmp_path).saved(model) == pytest.approx(0.4)


def test_a_smaller_model_saves_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_SECONDS", 0.05)
    text = """<ir_version: 10, opset_import: ["": 20]>
        g (float[64, 64] x) => (float[64, 64] y) { h = MatMul (x, a) y = MatMul (h, b) }"""
    large, small = (
        model_of(text, {"a": np.ones((64, n), np.float32), "b": np.ones((n, 64), np.float32)}) for n in (2048, 16)
    )
    with latency.race(large, {"x": np.ones((64, 64), np.float32)}, CPU) as race:
        assert 0.3 < race.saved(small) < 1


def test_one_channel_of_every_tensor_stays() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[N, 8] x) => (float[N, 3] y) {
        a = MatMul (x, w1) b = MatMul (x, w2) c = Concat <axis = 1> (a, b) h = Relu (c) y = MatMul (h, w3) }"""
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal(s).astype(np.float32) for n, s in {"w1": (8, 6), "w3": (10, 3)}.items()}
    weights["w2"] = np.full((8, 4), 1e-3, np.float32)
    model = model_of(text, weights)
    x = rng.standard_normal((64, 8)).astype(np.float32)
    run(model, *NAMED, PruneChannels(multiple=1, remove=0.7, keep=0.1), on=with_samples(x))
    assert shape(model, "w2")[1] >= 1
    assert shape(model, "w1")[1] + shape(model, "w2")[1] == shape(model, "w3")[0] <= 3


def test_too_much_is_an_error() -> None:
    with pytest.raises(RecipeError, match="75%"):
        pruned(mlp(), with_samples(rows()), remove=0.9, keep=0.25)


def test_needs_samples() -> None:
    with pytest.raises(DataError, match="no calibration samples"):
        pruned(mlp(), context())


def test_a_decoder_loses_neurons_and_heads() -> None:
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal((1, 9, WIDTH)).astype(np.float32) for _ in range(4)]
    model, on = llama(2), with_samples(*samples)
    before = outputs(model, {"x": samples[0]})
    run(model, *NAMED, PruneChannels(remove=0.3, multiple=8), on=on)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    after = outputs(model, {"x": samples[0]})
    moved = np.square(after[0] - before[0]).sum() / np.square(before[0]).sum()
    assert 0 < moved < 0.1
    assert any("heads" in text and "multiply-accumulates" in text for text in on.notices)


def test_golden() -> None:
    model = model_of(TEXT, with_dead_channels())
    run(model, *NAMED)
    first = print_model(model)
    run(model, *NAMED, PruneChannels(budget="ratio", multiple=4, refit=False), on=with_samples(rows()))
    assert_golden("passes/prune-channels", f"# before\n{first}\n# after\n{print_model(model, provenance=True)}")
