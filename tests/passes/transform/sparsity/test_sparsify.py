"""Thinned models: the pattern, what is left alone and why, identities of the methods, and what they lose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.gram import Gram
from qcompile.compiler.linear_layers import linear_layers
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.printer import print_model
from qcompile.compiler.recipe import parse_recipe
from qcompile.compiler.weight_pattern import Pattern, weight_pattern
from qcompile.errors import DataError, QCompileError, RecipeError
from qcompile.passes.transform.sparsegpt import SparseGpt, swept
from qcompile.passes.transform.sparsify_magnitude import SparsifyMagnitude
from qcompile.passes.transform.sparsity.arrangement import Arrangement
from qcompile.passes.transform.sparsity.sparsify import Sparsify
from qcompile.passes.transform.wanda import Wanda
from tests.compiler.walks import ready, whole
from tests.golden import assert_golden
from tests.passes.harness import NAMED, model_of
from tests.passes.int8 import head, normal
from tests.passes.llama import WIDTH, llama
from tests.passes.quantize.test_ada_round import correlated
from tests.passes.quantize.test_compensate_bias import IMAGE_WEIGHTS, IMAGES, images

METHODS = [SparsifyMagnitude, Wanda, SparseGpt]
HALF = Arrangement.parse("2:4")


def sentences(count: int, length: int = 40, seed: int = 0) -> list[Sample]:
    """Vectors of which some directions are common, as those of words are."""
    mixing = correlated(WIDTH, WIDTH, seed=1)
    return [{"x": (normal(1, length, WIDTH, seed=seed + i) @ mixing).astype(np.float32)} for i in range(count)]


def thin(
    tested: Sparsify, model: ir.Model, feeds: Sequence[Sample], checkpoint: Path | None = None
) -> tuple[ir.Model, CompileContext]:
    model, context = ready(model, feeds, NAMED)
    context.following = ()
    context.checkpoint, context.resume = checkpoint, checkpoint is not None and checkpoint.exists()
    run_pipeline([*NAMED, tested], model, context)
    return model, context


def weights(model: ir.Model) -> dict[str, npt.NDArray[Any]]:
    return {str(layer.weight.name): layer.matrix() for layer in linear_layers(model)[0]}


def loss(model: ir.Model, reference: ir.Model, feeds: Sequence[Sample]) -> float:
    pairs = zip(whole(model, feeds), whole(reference, feeds), strict=True)
    return float(np.mean([np.square(a["y"] - b["y"]).sum() / np.square(b["y"]).sum() for a, b in pairs]))


def test_order_of_the_methods_is_that_of_the_papers() -> None:
    """Without refitting: magnitude loses most, then Wanda, then SparseGPT. Refitting helps each."""
    feeds, apart, losses = sentences(8), sentences(4, seed=100), {}
    for method in METHODS:
        for refit in (False, True):
            model, context = thin(method(refit=refit), llama(2), feeds)
            losses[method.name, refit] = loss(model, llama(2), apart)
            for layer in linear_layers(model)[0]:
                assert weight_pattern(layer.matrix()[0], 1) == Pattern(2, 4)
            assert context.notices[0] == f"{method.name}: 14 layers 2:4"
            assert refit == any("refitting 14 layers" in n for n in context.notices)
    plain = [losses[m.name, False] for m in METHODS]
    assert plain[0] > plain[1] > plain[2]
    assert all(losses[m.name, True] < losses[m.name, False] for m in METHODS)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_sparsegpt_with_diagonal_hessian_has_the_mask_of_wanda(pattern: str) -> None:
    """Nothing is to be made good then, and kept weights stay as they are."""
    weight, energy = normal(2, 6, 64), np.exp(normal(2, 64, seed=1))
    energy[:, 5] = 0
    gram = Gram((energy[:, :, None] * np.eye(64)).astype(np.float32))
    wanted = Arrangement.parse(pattern)
    thinned = Wanda(pattern=pattern).thinned(weight, wanted, gram)
    np.testing.assert_array_equal(swept(weight, wanted, gram, 1e-9), thinned)


def test_sparsegpt_alone_has_mask_and_update_in_one() -> None:
    """Against the formula written with the inverse, one column after the other."""
    weight = normal(1, 5, 16)
    x = normal(200, 16, seed=2) @ correlated(16, 16, seed=3)
    h = (x.T @ x).astype(np.float64)
    h += 0.01 * np.mean(np.diag(h)) * np.eye(16)
    inverse = np.linalg.cholesky(np.linalg.inv(h)).T  # upper: H^-1 = U^T U
    expected = weight[0].astype(np.float64)
    for j in range(16):
        if j % 4 == 0:
            scores = (expected[:, j : j + 4] / np.diag(inverse)[j : j + 4]) ** 2
            gone = np.argsort(scores, axis=1)[:, :2] + j
        error = np.where((gone == j).any(axis=1), expected[:, j], 0) / inverse[j, j]
        expected[:, j:] -= np.outer(error, inverse[j, j:])
        expected[(gone == j).any(axis=1), j] = 0
    found = swept(weight, HALF, Gram((x.T @ x).astype(np.float32)[None]), 0.01)[0]
    assert ((found == 0) == (expected == 0)).all()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


LAYERS = (
    head()
    + """g (float[N,16] x) => (float[N,8] y, float[N,6] z, float[N,16] p) {
    a = MatMul (x, wide)  r = Relu (a)  b = MatMul (r, odd)  s = Relu (b)  c = MatMul (s, after)
    t = MatMul (c, sparse)  y = Gemm <transB = 1> (t, turned)  z = MatMul (y, last)
    p = MatMul (c, tied)  q = MatMul (p, tied2) u = MatMul (q, tied2) }"""
)


def zoo() -> ir.Model:
    """K = 16; K = 10, no multiple of 4; 2:4 already; Gemm; a weight of two readers."""
    sparse = normal(16, 16, seed=3)
    sparse[0::4] = sparse[1::4] = 0
    weights = {
        "wide": normal(16, 10), "odd": normal(10, 12), "after": normal(12, 16), "sparse": sparse,
        "turned": normal(8, 16), "last": normal(8, 6), "tied": normal(16, 16), "tied2": normal(16, 16),
    }  # fmt: skip
    return model_of(LAYERS, weights)


def test_layers_that_stay_dense_are_named_with_the_reason() -> None:
    feeds = [{"x": normal(20, 16)}]
    before = weights(zoo())
    entry = {"name": "MatMul_4", "keep-dense": True}
    model, context = thin(Wanda.model_validate({"layers": [entry]}), zoo(), feeds)
    after = weights(model)
    assert context.notices[0] == (
        "wanda: 4 layers 2:4. Left as they were: MatMul_9: its weight is that of MatMul_10 too; "
        "MatMul_10: its weight is that of MatMul_9 too; "
        "MatMul_2: it sums over 10 channels, no multiple of 4; "
        "MatMul_4: kept dense by the option layers (name 'MatMul_4'); "
        "MatMul_5: it is 2:4 already"
    )
    for name in ("odd", "sparse", "after"):
        np.testing.assert_array_equal(after[name], before[name])
    for name in ("wide", "turned", "last", "tied"):
        assert weight_pattern(after[name][0], 1) == Pattern(2, 4)


def test_heads_stay_dense_unless_the_recipe_says_more() -> None:
    feeds = [{"x": normal(20, 16)}]
    text = head() + "g (float[N,16] x) => (float[N,8] y) { a = MatMul (x, w)  s = Add (a, x)  y = MatMul (s, v) }"
    model = model_of(text, {"w": normal(16, 16), "v": normal(16, 8)})
    thinned, context = thin(SparsifyMagnitude(), model.clone(), feeds)
    assert "kept dense by the option layers (role 'head')" in context.notices[0]
    assert weight_pattern(weights(thinned)["v"][0], 1) is None
    thinned, context = thin(SparsifyMagnitude(layers=()), model.clone(), feeds)
    assert context.notices[0] == "sparsify-magnitude: 2 layers 2:4"


def test_entries_say_what_is_different() -> None:
    options = {"pattern": "2:4", "layers": [{"role": "mlp", "pattern": "unstructured", "ratio": 0.25}]}
    model, context = thin(Wanda.model_validate(options), llama(1), sentences(2))
    assert context.notices[0] == "wanda: 4 layers 2:4, 3 layers 25% unstructured"
    gone = (weights(model)["w_down0"] == 0).mean(axis=2)
    np.testing.assert_array_equal(gone, 0.25)
    entry = {"role": "mlp", "pattern": "columns"}  # its share is that of the others
    model, context = thin(
        Wanda.model_validate({"pattern": "unstructured", "ratio": 0.25, "layers": [entry]}), llama(1), sentences(2)
    )
    assert context.notices[0] == "wanda: 4 layers 25% unstructured, 3 layers 25% columns"


@pytest.mark.parametrize("pattern", ["rows", "columns", "8x1", "unstructured"])
def test_what_goes_together_stays_zero_when_refitted(pattern: str) -> None:
    model, _ = thin(Wanda(pattern=pattern, ratio=0.25), llama(1), sentences(2))
    for weight in weights(model).values():
        assert Arrangement.parse(pattern, 0.25).holds(weight)


def test_convolutions_have_the_pattern_along_their_channels() -> None:
    """Grouped ones with one channel stay dense."""
    for method in METHODS:
        model, context = thin(method(), model_of(IMAGES, dict(IMAGE_WEIGHTS)), images(6))
        stored = {n: v.const_value.numpy() for n, v in model.graph.initializers.items() if v.const_value is not None}
        for name in ("w0", "w2", "w3"):
            assert weight_pattern(stored[name], 1) == Pattern(2, 4)
        np.testing.assert_array_equal(stored["w1"], IMAGE_WEIGHTS["w1"])
        assert "Conv_2: it is a depthwise convolution" in context.notices[0]


def test_without_samples_magnitude_is_not_refitted_and_says_so() -> None:
    model, context = ready(llama(1), sentences(1), NAMED)
    context.calibration, context.following = None, ()
    SparsifyMagnitude().run(model, context)
    assert any("no calibration samples" in n for n in context.notices)
    for name, weight in weights(model).items():
        dense = weights(llama(1))[name]
        np.testing.assert_array_equal(weight, dense * HALF.kept(dense**2))
    for method in (Wanda, SparseGpt):
        with pytest.raises(DataError, match="no calibration samples"):
            method().run(llama(1), context)


def test_a_second_run_finds_nothing_to_do() -> None:
    model, context = thin(SparseGpt(), llama(1), sentences(2))
    before = weights(model)
    assert not SparseGpt().run(model, context)
    for name, weight in weights(model).items():
        np.testing.assert_array_equal(weight, before[name])


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    found = []
    for name in ("whole", "resumed"):
        checkpoint = tmp_path / f"{name}.checkpoint"
        found.append(weights(thin(SparseGpt(), llama(1), sentences(2), checkpoint)[0]))
        if name == "resumed":
            files = sorted(tmp_path.glob(f"{name}*/*.npz"))
            assert len(files) == 4, "q, k, v; output; gate, up; down"
            files[-1].unlink()
            checkpoint.touch()
            found.append(weights(thin(SparseGpt(), llama(1), sentences(2), checkpoint)[0]))
    for name, weight in found[0].items():
        for other in found[1:]:
            np.testing.assert_array_equal(weight, other[name])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("wanda: {pattern: '4:2'}", "'4:2' is no pattern"),
        ("wanda: {pattern: '2:4', ratio: 0.5}", "pass 'wanda': 2:4 says how many weights go; leave out the ratio"),
        ("sparsegpt: {pattern: rows}", "sparsegpt has no rows; use N:M or unstructured, or the pass wanda"),
        ("sparsegpt: {layers: [{role: mlp, pattern: 16x1}]}", "sparsegpt has no 16x1"),
        ("wanda: {layers: [{pattern: '2:4'}]}", "say which layers"),
        ("wanda: {layers: [{role: mlp, ratio: 0.3}]}", "leave out the ratio"),
    ],
)
def test_options_that_make_no_sense(step: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(f"name: x\nsteps:\n  - {step}\n", "here").passes()


def test_names_that_match_nothing_and_inputs_without_end() -> None:
    with pytest.raises(QCompileError, match="no layer has the name 'nowhere'"):
        thin(Wanda.model_validate({"layers": [{"name": "nowhere", "keep-dense": True}]}), zoo(), [{"x": normal(2, 16)}])
    with pytest.raises(DataError, match="is not finite"):
        thin(Wanda(), zoo(), [{"x": np.full((2, 16), np.inf, np.float32)}])


@pytest.mark.parametrize("method", METHODS)
def test_golden(method: type[Sparsify]) -> None:
    """Which weights go; their values are a matter of the machine's last digits."""
    model, context = ready(model_of(IMAGES, dict(IMAGE_WEIGHTS)), images(8), NAMED)
    context.following = ()
    before = print_model(model)
    method().run(model, context)
    zeros = [
        f"{name}: {(value.const_value.numpy() == 0).mean():.0%} zero\n"
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and name.startswith("w")
    ]
    assert_golden(f"passes/{method.name}", f"# before\n{before}\n# after\n{''.join(zeros)}\n{context.notices[0]}\n")


def test_biases_take_over_the_mean_of_what_went() -> None:
    text = head() + "g (float[N,16] x) => (float[N,8] y) { y = Gemm <transB = 1> (x, w, b) }"
    dense = model_of(text, {"w": normal(8, 16), "b": normal(8, seed=1)})
    feeds: list[Sample] = [{"x": normal(30, 16, seed=i) + np.float32(2)} for i in range(3)]
    means = []
    for options in ({"refit": True}, {"refit": False}):
        model, _ = thin(Wanda(**options, layers=()), dense.clone(), feeds)
        lost = [a["y"] - b["y"] for a, b in zip(whole(model, feeds), whole(dense, feeds), strict=True)]
        means.append(np.abs(np.mean(np.concatenate(lost), axis=0)).max())
    assert means[0] < 1e-4 < 0.1 < means[1]
