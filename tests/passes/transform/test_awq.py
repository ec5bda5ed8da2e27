"""AWQ: the formula, the search, and what holds of every result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.block_walker import BlockWalker
from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.formats import INT4, UINT4
from qcompile.compiler.graph import constant, nodes
from qcompile.compiler.params import dequantize, quantize
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.plan import Form, Unit
from qcompile.compiler.printer import print_model
from qcompile.compiler.relative_error import relative_error
from qcompile.compiler.specs import PerBlock, QuantSpec
from qcompile.compiler.weight_params import weight_params
from qcompile.errors import PassError, RecipeError
from qcompile.passes.analyze.calibrate import Calibrate
from qcompile.passes.transform import awq as awq_pass
from qcompile.passes.transform.awq import EXPONENTS, Awq, scales, search
from qcompile.passes.transform.folding.apply import apply
from qcompile.passes.transform.folding.ranges import mean_magnitudes
from qcompile.passes.transform.folding.search import find_sites
from qcompile.passes.transform.folding.site import Site
from tests.golden import assert_golden
from tests.passes.harness import NAMED, assert_close, model_of, outputs
from tests.passes.llama import HEAD as HEAD_WIDTH
from tests.passes.llama import HEADS, SHARED, WIDTH, llama
from tests.passes.transform.graphs import HEAD, normal
from tests.sweep.harness import Samples, eager_target

SYMMETRIC = QuantSpec(INT4, PerBlock(0, 16), symmetric=True, full_range=True)
SPECS = {
    "symmetric": SYMMETRIC,
    "asymmetric": QuantSpec(UINT4, PerBlock(0, 8)),
    "short block": QuantSpec(INT4, PerBlock(0, 5)),
}


def observed(model: ir.Model, data: list[Sample]) -> CompileContext:
    """The context that awq meets."""
    context = CompileContext(eager_target(), Path("unused"), calibration=Samples(data))
    run_pipeline(NAMED, model, context)
    context.requests = list(Awq().statistics(model, context))
    Calibrate().run(model, context)
    return context


def decoder() -> tuple[ir.Model, list[Sample]]:
    """A decoder whose residual stream has channels of very different size."""
    sizes = np.exp(1.5 * normal(WIDTH, seed=9))
    return llama(2), [{"x": normal(1, 12, WIDTH, seed=i) * sizes} for i in range(4)]


def layers(model: ir.Model) -> dict[str, ir.Node]:
    return {str(n.name): n for n in nodes(model) if n.op_type == "MatMul" and constant(n.inputs[1]) is not None}


def rounded(model: ir.Model, spec: QuantSpec) -> ir.Model:
    """`model` with its weights rounded to nearest."""
    copy = model.clone()
    for node in layers(copy).values():
        weight = constant(node.inputs[1])
        assert weight is not None
        params = weight_params(weight, spec)
        node.inputs[1].const_value = ir.tensor(dequantize(quantize(weight, params), params))  # type: ignore[union-attr]
    return copy


def error(exact: ir.Model, given: ir.Model, data: list[Sample]) -> float:
    runs = [[{"y": outputs(m, dict(sample))[0]} for sample in data] for m in (exact, given)]
    return relative_error(*runs, ["y"])


def test_the_formula() -> None:
    mean = np.array([0.25, 4.0, 1.0])
    np.testing.assert_allclose(scales(mean, 0.5), [0.5, 2, 1])
    np.testing.assert_allclose(scales(mean, 1.0), mean)
    np.testing.assert_array_equal(scales(mean, 0.0), [1, 1, 1])
    silent = scales(np.array([0.0, 1.0]), 0.5)
    np.testing.assert_allclose(silent, np.array([1e-4, 1.0]) / 1e-2)
    assert tuple(i / 20 for i in range(20)) == EXPONENTS


@pytest.mark.parametrize("name", SPECS)
def test_no_exponent_is_round_to_nearest(name: str) -> None:
    """The error that the search assigns to r = 0 is that of the block with only those weights rounded."""
    spec = SPECS[name]
    model, data = decoder()
    context = observed(model, data)
    for visit in BlockWalker(model, context, data):
        for site in find_sites(visit.model)[0]:
            names = {f.node for f in site.multiplied if f.weight}
            trial = visit.model.clone()
            for node in layers(trial).values():
                if node.name in names:
                    weight = constant(node.inputs[1])
                    assert weight is not None
                    params = weight_params(weight, spec)
                    node.inputs[1].const_value = ir.tensor(dequantize(quantize(weight, params), params))  # type: ignore[union-attr]
            expected = relative_error(visit.float_outputs, visit.run(trial, visit.float_inputs), visit.block.outputs)
            [found] = search(visit, site, [np.ones(site.scales)], dict.fromkeys(names, spec))
            assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_the_searched_error_is_that_of_the_folded_block(name: str) -> None:
    """Q(W * s) / s in place is what folding s and rounding gives; s leaves the codes of the producers as they are."""
    spec = SPECS[name]
    model, data = decoder()
    context = observed(model, data)
    specs = dict.fromkeys(layers(model), spec)
    tried = 0
    for visit in BlockWalker(model, context, data):
        for site in find_sites(visit.model)[0]:
            vector = scales(mean_magnitudes(context.statistics, site), 0.4)
            readers = {f.node for f in site.multiplied if f.weight}
            folded = visit.model.clone()
            if apply(folded, site, vector, "test"):
                continue
            others = {n: w for n, w in layers(folded).items() if n in readers}
            for node in others.values():
                weight = constant(node.inputs[1])
                assert weight is not None
                params = weight_params(weight, spec)
                node.inputs[1].const_value = ir.tensor(dequantize(quantize(weight, params), params))  # type: ignore[union-attr]
            expected = relative_error(visit.float_outputs, visit.run(folded, visit.float_inputs), visit.block.outputs)
            [found] = search(visit, site, [vector], specs)
            assert found == pytest.approx(expected, rel=1e-3)
            tried += 1
    assert tried >= 6


def awq(model: ir.Model, context: CompileContext, spec: QuantSpec) -> dict[Site, Any]:
    """Search and fold with every layer on the grid of `spec`."""
    method = Awq(samples=4)
    chosen = method.searched(model, context, find_sites(model)[0], dict.fromkeys(layers(model), spec))
    for site, choice in chosen.items():
        apply(model, site, choice.scales, "awq")
    return chosen


@pytest.mark.parametrize("name", SPECS)
def test_rounding_hurts_less_and_the_float_function_stays(name: str) -> None:
    model, data = decoder()
    context = observed(model, data)
    exact = model.clone()
    chosen = awq(model, context, SPECS[name])
    assert {str(site.family) for site in chosen} == {"norm", "attention value", "gated product"}
    assert_close(outputs(exact, dict(data[0])), outputs(model, dict(data[0])))
    plain, scaled = error(exact, rounded(exact, SPECS[name]), data), error(exact, rounded(model, SPECS[name]), data)
    assert scaled < 0.8 * plain


def test_no_block_becomes_worse() -> None:
    """Also where nothing is gained: a layer whose weights lie on the grid keeps them."""
    model, data = decoder()
    context = observed(model, data)
    method, specs = Awq(samples=4), dict.fromkeys(layers(model), SYMMETRIC)
    sites = find_sites(model)[0]
    chosen = method.searched(model, context, sites, specs)
    for visit in BlockWalker(model, context, data):
        for site in sites:
            if not {f.node for f in site.multiplied if f.weight}.intersection(visit.block.nodes):
                continue
            vector = chosen[site].scales if site in chosen else np.ones(site.scales)
            before, after = search(visit, site, [np.ones(site.scales), vector], specs)
            assert after <= before
            assert site not in chosen or after < before
    for node in layers(model).values():
        node.inputs[1].const_value = ir.tensor(whole(*node.inputs[1].shape.numpy()) * np.float32(0.25))  # type: ignore[union-attr]
    on_the_grid = observed(model, data)
    exact = dict.fromkeys(specs, QuantSpec(INT4, PerBlock(0, 1), symmetric=True))
    assert method.searched(model, on_the_grid, sites, exact) == {}


def whole(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(shape).integers(-4, 5, shape).astype(np.float32)


def test_shared_heads_share_a_scale() -> None:
    model, data = decoder()
    context = observed(model, data)
    site = next(s for s in find_sites(model)[0] if str(s.family) == "attention value")
    assert site.scales == SHARED * HEAD_WIDTH
    [name] = site.inputs
    seen = context.statistics.channels_of(name, -1)
    assert seen is not None
    group = seen.mean_magnitude.reshape(SHARED, HEADS // SHARED, HEAD_WIDTH).mean(1)
    np.testing.assert_allclose(mean_magnitudes(context.statistics, site), group.ravel())


class Place(Pass):
    """MatMul weights in blocks of 8, of 4 bits."""

    name: ClassVar[str] = "place-for-awq"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        for name, node in layers(model).items():
            spec = QuantSpec(INT4, PerBlock(0, 8), symmetric=True, full_range=True)
            value = str(node.outputs[0].name)
            context.plan.units[name] = Unit(name, "MatMul", Form.WEIGHTS, (None, None), value, weight_spec=spec)
        return False


NORM = f"""{HEAD} g (float[B,S,32] x) => (float[B,S,32] y) {{
  n = LayerNormalization (x, g, b) h = MatMul (n, w) k = MatMul (n, w2) a = Tanh (k) m = Mul (a, h)
  t = Tanh (m) y = MatMul (t, w3) }}"""
SHARED_INPUT = f"""{HEAD} g (float[B,S,32] x) => (float[B,S,32] y) {{
  n = LayerNormalization (x, g, b) h = MatMul (n, w) t = Tanh (n) y = Add (h, t) }}"""
WEIGHTS = {
    "g": np.where(np.arange(32) % 8 == 3, 16, 1).astype(np.float32),
    "b": np.zeros(32, np.float32),
    **{name: normal(32, 32, seed=i) / 6 for i, name in enumerate(("w", "w2", "w3"))},
}


def compiled(text: str, *passes: Pass) -> tuple[ir.Model, CompileContext, str]:
    """The model behind `passes`, and its text before."""
    used = {n: a for n, a in WEIGHTS.items() if f"{n})" in text or f" {n}," in text}
    data: list[Sample] = [{"x": normal(2, 16, 32, seed=i)} for i in range(4)]
    model, context = model_of(text, used), CompileContext(eager_target(), Path("unused"), calibration=Samples(data))
    before: list[str] = []
    run_pipeline([*NAMED, Calibrate(), *passes], model, context, lambda done, now: before.append(print_model(now)))
    return model, context, before[len(NAMED)]


def nodes_of(text: str) -> str:
    """A printed model without its constants, whose last digits are the machine's."""
    return "".join(f"{line}\n" for line in text.splitlines() if " -> " in line)


def test_golden() -> None:
    """Two layers behind a norm; nothing that could be divided lies before the third."""
    model, context, before = compiled(NORM, Awq(least_gain=60), Place())
    after = print_model(model, provenance=True)
    assert_golden("passes/awq", f"# before\n{nodes_of(before)}\n# after\n{nodes_of(after)}")
    assert "folds nowhere, and a Mul is not worth it: 1" in context.notices[-1]


def test_a_mul_is_inserted_where_nothing_folds_and_it_pays() -> None:
    model, context, _ = compiled(SHARED_INPUT, Awq(), Place())
    assert [n.name for n in model.graph if n.op_type == "Mul"] == ["n_smooth"]
    assert "inserted Mul: r" in context.notices[-1]
    dear, _, _ = compiled(SHARED_INPUT, Awq(least_gain=60), Place())
    assert not [n for n in dear.graph if n.op_type == "Mul"]


def test_without_a_quantizer_there_is_nothing_to_search_for() -> None:
    with pytest.raises(RecipeError, match="awq finds no layer to quantize"):
        compiled(NORM, Awq())


def test_a_wrong_site_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that forgets one reader of the norm changes the function, and the pipeline says so."""

    def forgetful(model: ir.Model) -> tuple[list[Site], list[Any]]:
        sites, refused = find_sites(model)
        return [replace(sites[0], multiplied=sites[0].multiplied[:1])], refused

    monkeypatch.setattr(awq_pass, "find_sites", forgetful)
    with pytest.raises(PassError, match="'awq' changed the float function"):
        compiled(NORM, Awq(), Place())


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    def search(resume: bool) -> list[str]:
        model, data = decoder()
        context = observed(model, data)
        context.checkpoint, context.resume = tmp_path / "c", resume
        specs = dict.fromkeys(layers(model), SYMMETRIC)
        chosen = Awq().searched(model, context, find_sites(model)[0], specs)
        return [f"{site.title} {choice.exponent} {choice.scales.tolist()}" for site, choice in chosen.items()]

    first = search(resume=False)
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}
    assert kept
    assert search(resume=True) == first
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")} == kept
