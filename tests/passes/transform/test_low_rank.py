"""low-rank: two thin layers for one, of what a budget allows; full rank is the model; the order of the methods."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.compiler.graph import constant
from qcompile.compiler.linear_layers import linear_layers
from qcompile.compiler.low_rank import Factors, decomposed
from qcompile.compiler.passes import Phase
from qcompile.compiler.printer import print_model
from qcompile.compiler.relative_error import relative_error
from qcompile.errors import DataError, RecipeError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.transform.low_rank import LowRank
from qcompile.passes.transform.truncation import two_layers
from qcompile.passes.transform.truncation.fit import evened
from qcompile.passes.transform.truncation.thin_forms import Strips, thin_forms
from qcompile.runtime.device import Device
from tests.golden import assert_golden
from tests.passes.decoder import VOCABULARY, decoder, feed
from tests.passes.harness import NAMED, Arrays, assert_close, context, model_of, outputs, run
from tests.passes.int8 import compiled, head, normal
from tests.passes.llama import WIDTH, llama
from tests.passes.samples import Samples
from tests.sweep.harness import sqnr

CONVOLUTIONS = (
    head()
    + """g (float[B,6,12,12] x) => (float[B,4] y) {
    a = Conv <strides = [1, 2], pads = [1, 0, 1, 2], dilations = [1, 1]> (x, w1, b1) r = Relu (a)
    c = Conv <group = 2, kernel_shape = [3, 3], auto_pad = "SAME_UPPER", strides = [2, 2]> (r, w2)
    d = Conv <group = 12, pads = [1, 1, 1, 1]> (c, w3) p = GlobalAveragePool (d) f = Flatten (p)
    y = Gemm <transB = 1> (f, w4, b4) }"""
)
CONVOLUTION_WEIGHTS = {
    "w1": normal(12, 6, 3, 3),
    "b1": normal(12),
    "w2": normal(12, 6, 3, 3),
    "w3": normal(12, 1, 3, 3),
    "w4": normal(4, 12),
    "b4": normal(4),
}
PRODUCTS = (
    head()
    + """g (float[B,S,24] x) => (float[B,S,4] y) {
    p = MatMul (x, w) a = Add (p, b) t = Tanh (a) q = MatMul (t, v) y = MatMul (q, u) }"""
)
PRODUCT_WEIGHTS = {"w": normal(24, 16), "b": normal(16), "v": normal(16, 24), "u": normal(24, 4)}


def sentences(count: int, seed: int) -> list[Arrays]:
    """Inputs of the decoder whose channels depend on each other."""
    mixed = np.random.default_rng(3).standard_normal((WIDTH, WIDTH)) * np.exp(-np.arange(WIDTH) / 6)[:, None]
    rng = np.random.default_rng(seed)
    return [{"x": (rng.standard_normal((1, 24, WIDTH)) @ mixed).astype(np.float32)} for _ in range(count)]


def truncated(model: ir.Model, samples: list[Any], **options: Any) -> tuple[ir.Model, list[str]]:
    on, step = context(), LowRank.model_validate({"multiple": 1} | options)
    on.calibration = Samples(*samples)
    assert run(model, *NAMED, step, on=on)[-1].modified
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model, on.notices


def weights(model: ir.Model) -> int:
    arrays = [constant(n.inputs[1]) for n in model.graph if n.op_type in ("Conv", "Gemm", "MatMul")]
    return sum(a.size for a in arrays if a is not None)


def error(model: ir.Model, other: ir.Model, feeds: list[Arrays]) -> float:
    exact, given = ([{"y": outputs(m, feed)[0]} for feed in feeds] for m in (model, other))
    return relative_error(exact, given, ["y"])


def test_golden() -> None:
    """A product becomes two, one that is too small stays, and so does one that an entry keeps."""
    entries: list[dict[str, Any]] = [{"name": "MatMul_3", "keep-whole": True}, {"name": "MatMul_0", "rank": 4}]
    before = model_of(PRODUCTS, PRODUCT_WEIGHTS)
    run(before, *NAMED)
    model, notices = truncated(model_of(PRODUCTS, PRODUCT_WEIGHTS), [normal(2, 9, 24)], layers=entries)
    text = f"# before\n{print_model(before)}\n# after\n{print_model(model, provenance=True)}"
    assert_golden("passes/low-rank", re.sub("#[0-9a-f]{8}", "#...", text) + f"\n# notice\n{notices[0]}\n")


def test_within_the_budget_and_in_the_published_order() -> None:
    """Plain loses most, then ASVD, and SVD-LLM least; what refitting makes good is most where most is lost."""
    model, feeds = llama(1), sentences(4, seed=2)
    lost = {}
    for method in ("plain", "asvd", "svd-llm"):
        for refit in (False, True):
            made, _ = truncated(llama(1), sentences(8, seed=1), keep=0.8, method=method, refit=refit)
            assert 0.78 * weights(model) < weights(made) <= 0.8 * weights(model)
            lost[method, refit] = error(model, made, feeds)
    assert lost["svd-llm", True] < lost["asvd", True] < lost["plain", True]
    assert lost["svd-llm", False] < lost["asvd", False] < lost["plain", False]
    for method in ("plain", "asvd"):
        assert lost[method, True] < 0.95 * lost[method, False]


def test_a_smaller_budget_loses_more() -> None:
    feeds = sentences(2, seed=2)
    lost = [error(llama(1), truncated(llama(1), sentences(4, 1), keep=keep)[0], feeds) for keep in (0.95, 0.8, 0.6)]
    assert lost == sorted(lost)


def test_weights_of_low_rank_lose_nothing() -> None:
    low = {"w": normal(24, 3) @ normal(3, 16), "b": normal(16), "v": normal(16, 3) @ normal(3, 24), "u": normal(24, 4)}
    x = normal(2, 40, 24)
    made, _ = truncated(model_of(PRODUCTS, low), [x], keep=0.5)
    assert [n.op_type for n in made.graph].count("MatMul") >= 5
    assert_close(outputs(model_of(PRODUCTS, low), {"x": x}), outputs(made, {"x": x}), 1e-4)


@pytest.mark.parametrize("refit", [False, True])
def test_convolutions_of_low_rank_lose_nothing(refit: bool) -> None:
    """By channels and, where the kernel is a sum of two products of a column and a row, by strips: strides, padding
    of each side, groups."""
    rng = np.random.default_rng(0)
    columns, rows = rng.standard_normal((2, 6, 3)), rng.standard_normal((2, 12, 3))
    strips = np.einsum("rci,rnj->ncij", columns, rows)
    grouped = np.concatenate([normal(6, 2, seed=g) @ normal(2, 54, seed=g) for g in range(2)]).reshape(12, 6, 3, 3)
    low = CONVOLUTION_WEIGHTS | {"w1": strips.astype(np.float32), "w2": grouped}
    x = normal(3, 6, 12, 12)
    entries = [{"name": name, "rank": 2} for name in ("Conv_0", "Conv_2")]
    made, notices = truncated(model_of(CONVOLUTIONS, low), [x], refit=refit, layers=entries)
    kernels = [tuple(a.shape) for n in made.graph if n.op_type == "Conv" and (a := constant(n.inputs[1])) is not None]
    assert kernels == [(2, 6, 3, 1), (12, 2, 1, 3), (4, 6, 3, 3), (12, 2, 1, 1), (12, 1, 3, 3)]
    assert_close(outputs(model_of(CONVOLUTIONS, low), {"x": x}), outputs(made, {"x": x}), 1e-4)
    assert "1 of them of a column and a row" in notices[0]
    assert "Left whole: Conv_3: it is a depthwise convolution" in notices[0]


@pytest.mark.parametrize(
    ("text", "weights", "shape"),
    [(PRODUCTS, PRODUCT_WEIGHTS, (2, 9, 24)), (CONVOLUTIONS, CONVOLUTION_WEIGHTS, (2, 6, 12, 12))],
)
def test_full_rank_is_the_model(text: str, weights: Arrays, shape: tuple[int, ...]) -> None:
    """Every layer in every form: products, convolutions by channels and by strips, groups, padding of each kind."""
    feeds = {"x": normal(*shape)}
    expected, written = outputs(model_of(text, weights), feeds), 0
    for at, layer in enumerate(linear_layers(model_of(text, weights))[0]):
        for form in range(len(thin_forms(layer))):
            model = model_of(text, weights)
            run(model, *NAMED)
            taken = linear_layers(model)[0][at]
            chosen = thin_forms(taken)[form]
            factors = decomposed(chosen.matrix(taken.matrix())).truncated(chosen.full)
            two_layers.write(taken, chosen, factors, Names(model), "test")
            assert_close(expected, outputs(model, feeds), 1e-5)
            written += 1
    assert written == (3 if text is PRODUCTS else 4)


def test_convolutions_within_a_budget() -> None:
    x = normal(3, 6, 12, 12)
    made, _ = truncated(model_of(CONVOLUTIONS, CONVOLUTION_WEIGHTS), [x], keep=0.7)
    before, after = outputs(model_of(CONVOLUTIONS, CONVOLUTION_WEIGHTS), {"x": x}), outputs(made, {"x": x})
    assert np.square(before[0] - after[0]).sum() < 0.2 * np.square(before[0]).sum()


def test_bad_input() -> None:
    x = normal(1, 9, 24)
    with pytest.raises(RecipeError, match="rank 17 is larger than the matrix of 'MatMul_0', 16 x 24"):
        truncated(model_of(PRODUCTS, PRODUCT_WEIGHTS), [x], layers=[{"name": "MatMul_0", "rank": 17}])
    with pytest.raises(RecipeError, match="no layer has the name 'nowhere'"):
        truncated(model_of(PRODUCTS, PRODUCT_WEIGHTS), [x], layers=[{"name": "nowhere", "rank": 1}])
    with pytest.raises(RecipeError, match=r"no ranks leave less than 1\d\.\d% of the weights, and 1\.0% are asked for"):
        truncated(model_of(PRODUCTS, PRODUCT_WEIGHTS), [x], keep=0.01)
    with pytest.raises(DataError, match="no calibration samples"):
        run(model_of(PRODUCTS, PRODUCT_WEIGHTS), *NAMED, LowRank())


def test_a_rank_that_saves_nothing_leaves_the_layer_whole() -> None:
    on, model = context(), model_of(PRODUCTS, PRODUCT_WEIGHTS)
    on.calibration = Samples(normal(1, 9, 24))
    steps = LowRank.model_validate({"keep": 1, "multiple": 1, "layers": [{"name": "MatMul_0", "rank": 16}]})
    assert not run(model, *NAMED, steps, on=on)[-1].modified
    assert "Left whole: MatMul_0: two of rank 16 have no fewer weights or operations" in on.notices[0]


@pytest.mark.parametrize(("recipe", "least"), [("int8-static", 30), ("int4-rtn", 12)])
def test_thin_layers_are_quantized(recipe: str, least: float) -> None:
    """Both of each pair, on what the truncation left, which is what the result is held against."""
    samples = sentences(4, seed=1)
    steps = find_recipe(recipe).passes()
    at = next(i for i, step in enumerate(steps) if step.phase is not Phase.PREPARE)
    cut = LowRank(keep=0.7, multiple=1)
    done = compiled(ir.to_proto(llama(1)), samples, passes=[*steps[:at], cut, *steps[at:]])
    thin = [n for n in done.plan.units if n.endswith("_thin")]
    assert thin
    assert {n.removesuffix("_thin") for n in thin} <= done.plan.units.keys()
    assert done.context.unquantized is not None
    edited = outputs(done.context.unquantized, samples[0])[0]
    assert sqnr(edited, done.optimized["y"]) > least


def test_what_lies_between_is_even() -> None:
    """The same product; channels between the two are of like size, where they had that of the singular values."""
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.standard_normal((1, 40, 24)))[0]
    before = Factors(left, np.geomspace(100, 1, 24)[:, None] * rng.standard_normal((1, 24, 24)))
    after = evened(before, Device.CPU)
    np.testing.assert_allclose(after.product, before.product, atol=1e-9)
    np.testing.assert_allclose(after.left.swapaxes(1, 2) @ after.left, np.eye(24)[None], atol=1e-9)
    energy = np.square(after.right).sum(2)
    assert energy.max() < 20 * energy.min()


def test_strips_and_back() -> None:
    """The reordered matrix in compact factors is the convolution's weight in expanded ones."""
    form, weight = Strips(5, 4, 3, 2, 1), normal(1, 5, 24)
    directions = decomposed(form.matrix(weight)).truncated(form.full)
    expanded = form.expanded(directions)
    np.testing.assert_allclose(expanded.product, weight, atol=1e-6)
    compact = form.compact(expanded)
    np.testing.assert_allclose(compact.left, directions.left)
    np.testing.assert_allclose(compact.right, directions.right)


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    """Both walks take what they find on disk, and the result is the same to the last bit."""

    def made(resume: bool) -> bytes:
        on, model = context(), llama(1)
        on.calibration, on.checkpoint, on.resume = Samples(*sentences(2, seed=1)), tmp_path / "state", resume
        run(model, *NAMED, LowRank(keep=0.8, multiple=1), on=on)
        return ir.to_proto(model).SerializeToString(deterministic=True)

    first = made(resume=False)
    assert len(list(tmp_path.glob("state.low-rank.*"))) == 2
    assert made(resume=True) == first


@pytest.mark.parametrize(("operator", "half"), [(False, False), (True, True)])
def test_decoders(operator: bool, half: bool) -> None:
    """With a cache, whatever computes attention, and in half precision, whose type the thin layers keep."""
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (4, 12))
    samples = [feed(row, {}, operator, layers=1, half=half) for row in tokens]
    made, _ = truncated(decoder(1, operator=operator, half=half), samples, keep=0.9)
    thin = [n for n in made.graph if str(n.name).endswith("_thin")]
    assert thin
    assert {n.inputs[1].dtype for n in thin if n.inputs[1]} == {ir.DataType.FLOAT16 if half else ir.DataType.FLOAT}
    exact, given = (outputs(m, samples[0])[0] for m in (decoder(1, operator=operator, half=half), made))
    assert sqnr(exact.astype(np.float32), given.astype(np.float32)) > 8
