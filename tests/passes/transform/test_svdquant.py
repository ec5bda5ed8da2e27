"""SVDQuant: the float function stays, the branch is the truncated SVD, and few bits lose less beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant, nodes
from qcompile.compiler.passes import Pass
from qcompile.compiler.printer import print_model
from qcompile.compiler.recipe import Step
from qcompile.compiler.roles import roles
from qcompile.compiler.simulation import placement
from qcompile.compiler.targets import target_named
from qcompile.errors import DataError, RecipeError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.passes.quantize.place_weights import PlaceWeights
from qcompile.passes.transform.low_rank_branch import Metric
from qcompile.passes.transform.svdquant import Svdquant
from tests.golden import assert_golden
from tests.passes.harness import NAMED, assert_close, context, model_of, outputs, run
from tests.passes.int8 import compiled, head, normal
from tests.passes.llama import llama
from tests.passes.low_rank import LAYERS, branch, together, with_step
from tests.passes.samples import Samples
from tests.sweep.harness import eager_target, sqnr

RECIPE = find_recipe("svdquant-int4")
METRICS: tuple[Metric, ...] = ("weights", "inputs", "outputs")


def divided(
    text: str, weights: dict[str, Any], x: np.ndarray[Any, Any] | None, **options: Any
) -> tuple[ir.Model, CompileContext]:
    """The model behind the pass, in front of a placement of all its layers."""
    model, on = model_of(text, weights), context(eager_target())
    on.calibration = Samples(x) if x is not None else None
    steps: list[Pass] = [*NAMED, Svdquant(**options)]
    run(model, *NAMED, on=on)
    on.following = [PlaceWeights()]
    run(model, *steps, *on.following, on=on)
    return model, on


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("text", LAYERS)
def test_the_function_stays(text: str, metric: Metric) -> None:
    x = normal(2, 5, 8) if "B,S" in text else normal(5, 8)
    model, on = divided(text, LAYERS[text], x, rank=1, metric=metric)
    assert_close(outputs(model_of(text, LAYERS[text]), {"x": x}), outputs(model, {"x": x}))
    assert sum("low_rank" in str(node.name) for node in nodes(model)) == 3
    assert not any("low_rank" in name for name in on.plan.units), "the branch stays float"
    assert "branches of rank 1 beside 1 layer " in on.notices[0]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), rank=st.integers(1, 4), inputs=st.integers(9, 20), outputs_=st.integers(9, 20))
def test_the_function_stays_at_any_size(seed: int, rank: int, inputs: int, outputs_: int) -> None:
    text = head(21) + f"g (float[S,{inputs}] x) => (float[S,{outputs_}] y) {{ y = MatMul (x, w) }}"
    weights, x = {"w": normal(inputs, outputs_, seed=seed)}, normal(4, inputs, seed=seed)
    model, _ = divided(text, weights, x, rank=rank, metric="outputs")
    assert_close(outputs(model_of(text, weights), {"x": x}), outputs(model, {"x": x}))


@pytest.mark.parametrize("metric", ["weights", "inputs"])
def test_closed_form(metric: Metric) -> None:
    """The truncated SVD of S W, taken back by S: S = 1, or the root mean squares of the inputs."""
    x, w = together(24)[0]["x"], normal(24, 16)
    text = head(21) + "g (float[1,S,24] x) => (float[1,S,16] y) { y = MatMul (x, w) }"
    model, _ = divided(text, {"w": w}, x, rank=3, metric=metric)
    squares = np.square(x.astype(np.float64)).sum((0, 1))
    scale = np.ones(24) if metric == "weights" else np.sqrt(squares + 0.01 * squares.mean())
    u, sigma, v = np.linalg.svd(scale[:, None] * w, full_matrices=False)
    expected = (u[:, :3] * sigma[:3]) @ v[:3] / scale[:, None]
    inner, outer = branch(model, "MatMul_0")
    np.testing.assert_allclose(inner @ outer, expected, atol=1e-5)
    rest = constant(next(node for node in nodes(model) if node.name == "MatMul_0").inputs[1])
    np.testing.assert_allclose(rest, w - expected, atol=1e-5)


def test_a_weight_of_low_rank_needs_no_codes() -> None:
    """Its rest is nothing, so int8 loses nothing."""
    text = head(21) + "g (float[1,S,32] x) => (float[1,S,32] y) { y = MatMul (x, w) }"
    weights, samples = {"w": normal(32, 2) @ normal(2, 32)}, together()
    recipe = with_step(find_recipe("int8-dynamic"), "remove-dead", Step(name="svdquant", options={"rank": 2}))
    done = compiled(ir.to_proto(model_of(text, weights)), samples, recipe=recipe)
    assert sqnr(done.expected["y"], done.optimized["y"]) > 100
    assert len(done.plan.units) == 1


def test_golden() -> None:
    """Two layers get a branch; a narrow one does not."""
    text = (
        head()
        + """g (float[S,8] x) => (float[S,2] y) {
        p = MatMul (x, w) a = Add (p, b) r = Relu (a) c = Gemm <transB = 1> (r, v) d = Tanh (c)
        y = MatMul (d, u) }"""
    )
    weights = {"w": np.round(normal(8, 6), 1), "b": normal(6), "v": normal(8, 6), "u": normal(8, 2)}
    model, on = divided(text, weights, None, rank=1, metric="weights")
    before = model_of(text, weights)
    run(before, *NAMED)
    assert "more than half of the layer's weights" in on.notices[1]
    assert_golden("passes/svdquant", f"# before\n{print_model(before)}\n# after\n{print_model(model, provenance=True)}")


def test_layers_keep_their_roles() -> None:
    model, on = llama(), context(eager_target())
    on.calibration = Samples(*together())
    run(model, *NAMED, on=on)
    before = roles(model)
    on.following = [PlaceWeights()]
    run(model, *NAMED, Svdquant(rank=4), *on.following, on=on)
    after = roles(model)
    assert {name: after[name] for name in before} == before


def test_few_bits_lose_less_beside_a_branch() -> None:
    """In a small decoder; GPTQ gains on the rest as well."""
    proto, samples = ir.to_proto(llama()), together()

    def loss(recipe: str, *options: str) -> float:
        done = compiled(proto, samples, *options, recipe=find_recipe(recipe))
        return sqnr(done.expected["y"], done.optimized["y"])

    plain, chosen = loss("int4-rtn"), loss("int4-gptq")
    nearest = compiled(
        proto,
        samples,
        recipe=with_step(find_recipe("int4-rtn"), "remove-dead", Step(name="svdquant", options={"rank": 4})),
    )
    assert sqnr(nearest.expected["y"], nearest.optimized["y"]) > plain + 1
    assert loss("svdquant-int4", "svdquant.rank=4") > chosen + 0.3


def test_behind_smoothing_static_codes_lose_less() -> None:
    recipe, step = find_recipe("int8-smoothquant"), Step(name="svdquant", options={"rank": 4})
    gains = []
    for chosen in (recipe, with_step(recipe, "smooth-quant", step)):
        fast = "calibrate.method=min-max", "smooth-quant.alpha=0.5"
        done = compiled(ir.to_proto(llama(1)), together(), *fast, recipe=chosen)
        assert {unit.form.name for unit in done.plan.units.values()} == {"INPUTS", "PASS"}
        gains.append(sqnr(done.expected["y"], done.optimized["y"]))
    assert gains[1] > gains[0] + 0.5


def test_an_eight_bit_head_has_no_branch() -> None:
    text = head(21) + "g (float[1,S,32] x) => (float[1,S,32] y) { h = MatMul (x, w) t = Mul (h, x) y = MatMul (t, v) }"
    weights = {"w": normal(32, 32), "v": normal(32, 32, seed=1)}
    done = compiled(ir.to_proto(model_of(text, weights)), together(), "svdquant.rank=2", recipe=RECIPE)
    assert any("no branch beside MatMul_2: its weight has 8 bits, that of others 4" in n for n in done.context.notices)
    assert {str(u.weight_spec and u.weight_spec.format.name) for u in done.plan.units.values()} == {"int4", "int8"}


@pytest.mark.parametrize("target", ["cpu", "cuda", "tensorrt"])
def test_every_target_keeps_the_branch_float(target: str) -> None:
    options = ("svdquant.rank=4", *(["precision.dtype=float32"] if target == "cuda" else []))
    done = compiled(ir.to_proto(llama(1)), together(), *options, recipe=RECIPE, target=target_named(target))
    layers = 5 if target == "cuda" else 7  # merged there
    assert len(done.plan.units) == layers
    thin = [node for node in nodes(done.model) if str(node.name).endswith(("_inner", "_outer"))]
    assert len(thin) == 2 * layers
    assert {node.op_type for node in thin} == {"MatMul"}
    assert sqnr(done.expected["y"], done.optimized["y"]) > 20


def test_a_branch_is_not_placed_in_a_trial_either() -> None:
    model, on = divided(*next(iter(LAYERS.items())), normal(5, 8), rank=1)
    on.following = [PlaceWeights()]
    assert list(placement(model, on).units) == ["MatMul_0"]


def test_errors() -> None:
    text, weights = next(iter(LAYERS.items()))
    with pytest.raises(DataError, match="no calibration samples"):
        divided(text, weights, None, rank=1, metric="inputs")
    with pytest.raises(RecipeError, match="no layer to quantize"):
        run(model_of(text, weights), *NAMED, Svdquant(), on=context())
    with pytest.raises(RecipeError, match="rank"):
        RECIPE.with_overrides(["svdquant.rank=0"]).passes()
