"""LoftQ: base and adapter together lie nearer to the float model than the codes alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.formats import FORMATS
from qcompile.compiler.graph import constant
from qcompile.compiler.lora.adapter import read_adapter
from qcompile.compiler.params import dequantize, quantize
from qcompile.compiler.printer import print_model
from qcompile.compiler.provenance import stamp_channels
from qcompile.compiler.recipe import Step
from qcompile.compiler.specs import PerBlock, QuantSpec
from qcompile.compiler.weight_params import weight_params
from qcompile.errors import OutputError, RecipeError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.passes.prepare.merge_lora import MergeLora
from qcompile.passes.quantize.place_weights import PlaceWeights
from qcompile.passes.transform.loftq import Loftq, parted
from tests.golden import assert_golden
from tests.passes.harness import NAMED, context, model_of, run
from tests.passes.int8 import compiled, head, normal
from tests.passes.llama import llama
from tests.passes.low_rank import Array, together, with_step
from tests.sweep.harness import eager_target

SPEC = QuantSpec(FORMATS["nf4"], PerBlock(2, 32))


def nearest(weight: Array) -> Array:
    params = weight_params(weight, SPEC)
    return dequantize(quantize(weight, params), params)


def test_one_round_is_the_svd_of_what_the_codes_miss() -> None:
    weight = normal(1, 48, 64)
    start = parted(weight, nearest, 4, 1)
    missed = (weight - nearest(weight))[0]
    u, sigma, v = np.linalg.svd(missed, full_matrices=False)
    np.testing.assert_array_equal(start.base, weight)
    np.testing.assert_allclose(start.up @ start.down, (u[:, :4] * sigma[:4]) @ v[:4], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(start.up, axis=0), np.linalg.norm(start.down, axis=1), rtol=1e-4)
    norm = np.linalg.norm(weight)
    np.testing.assert_allclose(start.error, np.sqrt(np.square(sigma[4:]).sum()) / norm, rtol=1e-4)
    np.testing.assert_allclose(start.plain, np.linalg.norm(missed) / norm, rtol=1e-4)


def test_rounds_never_make_it_worse() -> None:
    weight = normal(1, 48, 64)
    errors = [parted(weight, nearest, 8, rounds).error for rounds in (1, 2, 5, 10)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.97 * errors[0]
    start = parted(weight, nearest, 8, 5)
    left = weight - nearest(start.base) - start.up @ start.down
    np.testing.assert_allclose(np.linalg.norm(left) / np.linalg.norm(weight), start.error, rtol=1e-4)


def test_base_and_adapter(tmp_path: Path) -> None:
    """What is written for PEFT, merged into what the base's codes stand for, is nearer to the float weights."""
    recipe = find_recipe("nf4")
    recipe = recipe.model_copy(update={"steps": tuple(s for s in recipe.steps if s.name != "merge-linear")})
    options = {"adapter": str(tmp_path / "start"), "rank": 4}
    plain = compiled(ir.to_proto(llama(1)), together(), recipe=recipe)
    done = compiled(
        ir.to_proto(llama(1)), together(), recipe=with_step(recipe, "remove-dead", Step(name="loftq", options=options))
    )
    adapter = read_adapter(tmp_path / "start")
    assert len(adapter.updates) == 7
    original, errors = done.float_model.graph.initializers, []
    for (name, node), weight in done.plan.weights.items():
        exact, update = constant(original[name]), adapter.updates[node]
        before = plain.plan.weights[name, node]
        assert exact is not None
        with_adapter = dequantize(weight.codes, weight.params) + update.delta().T
        alone = dequantize(before.codes, before.params)
        errors.append([np.linalg.norm(exact - values) / np.linalg.norm(exact) for values in (alone, with_adapter)])
    plain_error, error = np.median(errors, axis=0)
    assert error < 0.85 * plain_error
    assert f"from {plain_error:.2%} to {error:.2%} (median)" in done.context.notices[0]


def test_golden(tmp_path: Path) -> None:
    """The base; a layer too narrow for the rank stays as it is."""
    text = head(21) + "g (float[S,32] x) => (float[S,2] y) { h = MatMul (x, w) r = Relu (h) y = MatMul (r, u) }"
    weights = {"w": normal(32, 24), "u": normal(24, 2)}
    model, on = model_of(text, weights), context(eager_target())
    run(model, *NAMED, on=on)
    before = print_model(model)
    on.following = [PlaceWeights(format="nf4")]
    Loftq(adapter=str(tmp_path / "a"), rank=2).run(model, on)
    assert_golden("passes/loftq", f"# before\n{before}\n# after\n{print_model(model, provenance=True)}")
    merged = model_of(text, weights)
    run(merged, *NAMED, MergeLora(adapter=str(tmp_path / "a")))


def test_layers_that_are_no_modules(tmp_path: Path) -> None:
    """Two of one name, and one that is no longer the framework's, stay as they are."""
    text = (
        head(21) + "g (float[S,32] x) => (float[S,32] y) { a = MatMul (x, w0) b = MatMul (a, w1) y = MatMul (b, w2) }"
    )
    weights = {f"w{i}": normal(32, 32) for i in range(3)}
    model, on = model_of(text, weights), context(eager_target())
    for node, name in zip(model.graph, ("/m/MatMul", "/m/MatMul_1", "/n/MatMul"), strict=True):
        node.name = name
    run(model, *NAMED, on=on)
    on.following = [PlaceWeights()]
    Loftq(adapter=str(tmp_path / "a"), rank=2).run(model, on)
    assert list(read_adapter(tmp_path / "a").updates) == ["n"]
    for name in ("w0", "w1"):
        np.testing.assert_array_equal(model.graph.initializers[name].const_value.numpy(), weights[name])  # type: ignore[union-attr]
    assert "no part for /m/MatMul, /m/MatMul_1: several layers are called after module 'm'" in on.notices[-1]
    for node in model.graph:
        stamp_channels(node, "smooth-quant", [])
    with pytest.raises(RecipeError, match="smooth-quant scaled or moved its channels"):
        Loftq(adapter=str(tmp_path / "b"), rank=2).run(model, on)


def test_errors(tmp_path: Path) -> None:
    text, weights = head(21) + "g (float[S,32] x) => (float[S,24] y) { y = MatMul (x, w) }", {"w": normal(32, 24)}
    model, on = model_of(text, weights), context(eager_target())
    run(model, *NAMED, on=on)
    with pytest.raises(RecipeError, match="no folder"):
        Loftq().run(model, on)
    folder = str(tmp_path / "a")
    with pytest.raises(RecipeError, match="no layer to adapt"):
        Loftq(adapter=folder).run(model, on)
    on.following = [PlaceWeights()]
    with pytest.raises(RecipeError, match="more than half"):
        Loftq(adapter=folder, rank=24).run(model, on)
    Loftq(adapter=folder, rank=2).run(model, on)
    with pytest.raises(OutputError, match="holds an adapter already"):
        Loftq(adapter=folder, rank=2).run(model, on)
