"""SmoothQuant: the formula, the search, and what a wrong fold would meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.block_walker import BlockWalker
from qcompile.compiler.blocks import extract
from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.passes import Pass
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.statistics import StatisticsTable
from qcompile.errors import PassError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.passes.analyze.calibrate import Calibrate
from qcompile.passes.transform import smooth_quant
from qcompile.passes.transform.folding.apply import apply, largest
from qcompile.passes.transform.folding.ranges import magnitudes, scaled
from qcompile.passes.transform.folding.search import find_sites
from qcompile.passes.transform.smooth_quant import SmoothQuant, smoothing
from tests.passes.harness import NAMED, assert_close, model_of, outputs
from tests.passes.int8 import Lowered, int8
from tests.passes.transform.graphs import GRAPHS, HEAD, Graph, normal
from tests.sweep.harness import Samples, eager_target

SMOOTH = find_recipe("int8-smoothquant")


def samples(graph: Graph, count: int = 3) -> list[Sample]:
    return [{"x": normal(*graph.shape, seed=i)} for i in range(count)]


def until_smooth(graph: Graph) -> tuple[ir.Model, CompileContext]:
    """The model and the statistics that smooth-quant meets."""
    model, data = graph.model, samples(graph)
    context = CompileContext(eager_target(), Path("unused"), calibration=Samples(data), held_out=[data[0]])
    steps = SMOOTH.passes()
    at = next(i for i, p in enumerate(steps) if isinstance(p, SmoothQuant))

    class Stop(Exception):
        pass

    def stop(done: Pass, now: ir.Model) -> None:
        if done is steps[at - 1]:
            raise Stop

    with pytest.raises(Stop):
        run_pipeline(steps, model, context, stop)
    context.following = steps[at + 1 :]
    return model, context


def test_readers_in_other_blocks_count_and_are_left_to_the_whole_model() -> None:
    tried = 0
    for graph in GRAPHS.values():
        model, context = until_smooth(graph)
        for site in find_sites(model)[0]:
            readers = {f.node for f in site.multiplied if f.weight}
            if len(readers) < 2:
                continue
            reader = next(n for n in model.graph if n.name in readers)
            block = extract(model, [str(reader.inputs[0].name)], [str(reader.outputs[0].name)])  # type: ignore[union-attr]
            scales = smoothing(block, context.statistics, site, 0.5, model)
            np.testing.assert_array_equal(scales, smoothing(model, context.statistics, site, 0.5))
            apply(block, site, scales, "test")
            apply(block, replace(site, inserted=str(reader.inputs[0].name)), scales, "test")  # type: ignore[union-attr]
            tried += 1
    assert tried


@pytest.mark.parametrize("name", GRAPHS)
def test_at_one_half_activations_and_weights_meet(name: str) -> None:
    """max |X_j / s_j| = max |W_j s_j| = sqrt(max |X_j| max |W_j|)."""
    model, context = until_smooth(GRAPHS[name])
    for site in find_sites(model)[0]:
        changed = model.clone()
        scales = smoothing(model, context.statistics, site, 0.5)
        made = apply(changed, site, scales, "test")
        assert not made
        x = magnitudes(scaled(context.statistics, site, scales, made), site)
        w = largest(changed, tuple(f for f in site.multiplied if f.weight), site.scales)
        seen = x > 0
        np.testing.assert_allclose(x[seen], w[seen], rtol=1e-5)


@pytest.mark.parametrize("name", GRAPHS)
def test_statistics_follow_from_the_channels(name: str) -> None:
    """What the search assumes of a folded site is what calibration sees of it."""
    graph = GRAPHS[name]
    model, context = until_smooth(graph)
    for site in find_sites(model)[0]:
        changed = model.clone()
        scales = smoothing(model, context.statistics, site, 0.6)
        apply(changed, site, scales, "test")
        expected = scaled(context.statistics, site, scales, {})
        again = replace(
            context, requests=list(SmoothQuant().statistics(changed, context)), statistics=StatisticsTable()
        )
        Calibrate().run(changed, again)
        for value, axis in site.axes.items():
            given, seen = expected.channels_of(value, axis), again.statistics.channels_of(value, axis)
            assert given is not None
            assert seen is not None
            for what in ("low", "high", "mean_magnitude"):
                np.testing.assert_allclose(getattr(given, what), getattr(seen, what), rtol=1e-4, atol=1e-6)
            whole = expected.range_of(value)
            assert whole is not None
            assert whole.low == given.low.min()
            assert whole.high == given.high.max()


@pytest.mark.parametrize("name", GRAPHS)
def test_a_block_keeps_its_function_when_a_site_reaches_beyond_it(name: str) -> None:
    graph = GRAPHS[name]
    model, _ = until_smooth(graph)
    feeds = graph.feeds
    for site in find_sites(model)[0]:
        scales = np.exp(np.random.default_rng(0).standard_normal(site.scales))
        for value in site.values:
            first = extract(model, ["x"], [value])
            [boundary] = expected = outputs(first, feeds)
            apply(first, site, scales, "test")
            assert_close(expected, outputs(first, feeds))
            if any(len(n.outputs) > 1 for n in model.graph if value in {v.name for v in n.outputs}):
                continue  # no block begins between the outputs of one node
            second = extract(model, [value, "x"], ["y"])
            known = {value: boundary, **feeds}
            known = {n: a for n, a in known.items() if n in {v.name for v in second.graph.inputs}}
            expected = outputs(second, known)
            apply(second, site, scales, "test")
            assert_close(expected, outputs(second, known))


OUTLIERS = {"g": np.where(np.arange(32) % 8 == 3, 200, 1).astype(np.float32), "b": np.zeros(32, np.float32)}
WEIGHTS = {"w": normal(32, 32) / 6, "w2": normal(32, 32, seed=1) / 6, "w3": normal(32, 32, seed=2) / 6}
PRE = f"""{HEAD} g (float[B,S,32] x) => (float[B,S,32] y) {{
  n = LayerNormalization (x, g, b) h = MatMul (n, w) k = MatMul (n, w2) a = Tanh (k) m = Mul (a, h)
  y = MatMul (m, w3) }}"""
POST = f"""{HEAD} g (float[B,S,32] x) => (float[B,S,32] y) {{
  n = LayerNormalization (x, g, b) h = MatMul (n, w) t = Tanh (n) y = Add (h, t) }}"""


def compiled(text: str, recipe: str, *options: str) -> Lowered:
    """With whole ranges: chosen ones spare the layers that outliers spoil, smoothed or not."""
    used = {n: a for n, a in (OUTLIERS | WEIGHTS).items() if f"{n})" in text or f" {n}," in text}
    data = [{"x": normal(2, 16, 32, seed=i)} for i in range(4)]
    return int8(text, used, data, "calibrate.method=min-max", *options, recipe=find_recipe(recipe))


def test_outlier_channels_cost_no_bits_once_smoothed() -> None:
    plain, smooth = (compiled(PRE, recipe).sqnr("y") for recipe in ("int8-static", "int8-smoothquant"))
    assert smooth > plain + 10, f"{plain:.1f} dB, smoothed {smooth:.1f} dB"


def test_a_mul_is_inserted_where_nothing_folds_and_it_pays() -> None:
    smooth = compiled(POST, "int8-smoothquant")
    assert [n.name for n in smooth.model.graph if n.op_type == "Mul"] == ["n_smooth"]
    assert smooth.sqnr("y") > compiled(POST, "int8-static").sqnr("y") + 5
    assert any("inserted Mul: alpha" in n for n in smooth.context.notices)
    dear = compiled(POST, "int8-smoothquant", "smooth-quant.least-gain=60")
    assert not [n for n in dear.model.graph if n.op_type == "Mul"]
    assert any("folds nowhere: the scale of 'n' reaches Tanh" in n for n in dear.context.notices)


def test_one_alpha_for_all_inserts_nothing() -> None:
    assert not [
        n for n in compiled(POST, "int8-smoothquant", "smooth-quant.alpha=0.5").model.graph if n.op_type == "Mul"
    ]
    fixed = compiled(PRE, "int8-smoothquant", "smooth-quant.alpha=0.5")
    assert fixed.sqnr("y") > compiled(PRE, "int8-static").sqnr("y") + 5
    assert any("norm: alpha 0.5 at 1; gated product: alpha 0.5 at 1" in n for n in fixed.context.notices)


@pytest.mark.parametrize("name", ["pre-norm attention", "gated product", "convolutions", "two linear layers"])
def test_smoothing_makes_no_block_worse(name: str) -> None:
    graph = GRAPHS[name]
    model, context = until_smooth(graph)
    before = model.clone()
    search = SmoothQuant(samples=3)
    sites = find_sites(model)[0]
    errors = []
    chosen = search.searched(model, context, sites)
    for visit in BlockWalker(model, context, samples(graph)):
        trial = start = smooth_quant._Trial(visit, context, visit.model, context.statistics)
        for site, choice in chosen.items():
            trial = trial.folded(site, choice.scales, "test")
        errors.append((start.error, trial.error))
    assert all(after <= before for before, after in errors)
    assert_close(outputs(before, graph.feeds), outputs(model, graph.feeds))


def test_a_wrong_site_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that forgets one reader of the norm changes the function, and the pipeline says so."""

    def forgetful(model: ir.Model) -> tuple[list[Any], list[Any]]:
        sites, refused = find_sites(model)
        return [replace(sites[0], multiplied=sites[0].multiplied[:1])], refused

    monkeypatch.setattr(smooth_quant, "find_sites", forgetful)
    with pytest.raises(PassError, match="'smooth-quant' changed the float function"):
        compiled(PRE, "int8-smoothquant", "smooth-quant.alpha=0.5")


@pytest.mark.parametrize("alpha", ["auto", "0"], ids=["changed", "unchanged"])
def test_samples_that_judge_are_not_in_the_ranges_they_judge(alpha: str) -> None:
    graph = GRAPHS["two linear layers"]
    data = samples(graph, 8)
    context = CompileContext(eager_target(), Path("unused"), calibration=Samples(data), held_out=[data[0]])
    counts = []

    def remember(done: Pass, now: ir.Model) -> None:
        if isinstance(done, Calibrate):
            counts.append(context.statistics.samples)

    passes = SMOOTH.with_overrides([f"smooth-quant.alpha={alpha}"]).passes()
    run_pipeline([p for p in passes if alpha != "0" or not isinstance(p, SmoothQuant)], graph.model, context, remember)
    assert counts == [6, 8]


def test_channels_without_values_or_weights_stay() -> None:
    weights = {"w": normal(8, 8) * (np.arange(8) != 2), "w2": normal(8, 8, seed=1) * (np.arange(8) != 5)[:, None]}
    text = f"{HEAD} g (float[B,8] x) => (float[B,8] y) {{ h = MatMul (x, w) r = Relu (h) y = MatMul (r, w2) }}"
    graph = Graph("", [], shape=(4, 8))
    model = model_of(text, {n: a.astype(np.float32) for n, a in weights.items()})
    context = CompileContext(eager_target(), Path("unused"), calibration=Samples(samples(graph)))
    run_pipeline([*NAMED, Calibrate(), SmoothQuant(alpha=0.5)][:3], model, context)
    context.requests = list(SmoothQuant().statistics(model, context))
    Calibrate().run(model, context)
    [site], _ = find_sites(model)
    scales = smoothing(model, context.statistics, site, 0.5)
    assert scales[[2, 5]].tolist() == [1, 1]
    assert (np.delete(scales, [2, 5]) != 1).all()


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    def search(resume: bool, seen: Sequence[str] = ()) -> list[str]:
        model, context = until_smooth(GRAPHS["pre-norm attention"])
        context.checkpoint, context.resume = tmp_path / "c", resume
        chosen = SmoothQuant(samples=2).searched(model, context, find_sites(model)[0])
        return [f"{site.title} {choice.alpha} {choice.scales.tolist()}" for site, choice in chosen.items()]

    first = search(resume=False)
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}
    assert kept
    assert search(resume=True) == first
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")} == kept


def test_an_image_network_with_a_classifier() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N,3,8,8] x) => (float[N,5] y) {
      c = Conv <pads = [1, 1, 1, 1]> (x, w)
      r = Relu (c)
      p = GlobalAveragePool (r)
      f = Flatten (p)
      y = Gemm (f, g, h)
    }"""
    weights = {"w": normal(4, 3, 3, 3), "g": normal(4, 5), "h": normal(5)}
    result = int8(text, weights, [{"x": normal(2, 3, 8, 8, seed=i)} for i in range(4)], recipe=SMOOTH)
    assert result.sqnr("y") > 30
