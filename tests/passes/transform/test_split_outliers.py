"""split-outliers, and with it llm-int8: all columns float is the float model, none is row-wise int8."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.printer import print_model
from qcompile.compiler.targets import target_named
from qcompile.errors import RecipeError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.passes.analyze.calibrate import Calibrate
from qcompile.passes.transform.split_outliers import SplitOutliers
from tests.golden import assert_golden
from tests.passes.harness import NAMED, assert_close, context, model_of, outputs, run
from tests.passes.int8 import Lowered, compiled, head, int8, normal
from tests.passes.llama import WIDTH, llama
from tests.passes.samples import Samples

RECIPE = find_recipe("llm-int8")
MATMUL = head() + "g (float[S,8] x) => (float[S,6] y) { p = MatMul (x, w) y = Add (p, b) }"
LAYERS = {
    MATMUL: {"w": normal(8, 6), "b": normal(6)},
    head() + "g (float[B,S,8] x) => (float[B,S,6] y) { p = MatMul (x, w) y = Relu (p) }": {"w": normal(8, 6)},
    head() + "g (float[S,8] x) => (float[S,6] y) { y = Gemm (x, w, b) }": {"w": normal(8, 6), "b": normal(6)},
    head() + "g (float[S,8] x) => (float[S,6] y) { y = Gemm <transB = 1> (x, w) }": {"w": normal(6, 8)},
}


def with_outliers(array: np.ndarray[Any, Any], *columns: int) -> np.ndarray[Any, Any]:
    """`array` between -4 and 4 but for some columns, which reach 40."""
    array = np.clip(array, -4, 4)
    for column in columns:
        array[..., 0, column] = 40
    return array


def split(text: str, weights: dict[str, Any], x: np.ndarray[Any, Any], threshold: float = 6.0) -> tuple[ir.Model, Any]:
    model, on = model_of(text, weights), context()
    on.calibration = Samples(x)
    run(model, *NAMED, Calibrate(), SplitOutliers(threshold=threshold), on=on)
    return model, on


@pytest.mark.parametrize("text", LAYERS)
def test_the_function_stays(text: str) -> None:
    x = with_outliers(normal(2, 5, 8) if "B,S" in text else normal(5, 8), 1, 6)
    model, on = split(text, LAYERS[text], x)
    assert [n.op_type for n in model.graph][:3] == ["Mul", "Gather", "MatMul"]
    assert_close(outputs(model_of(text, LAYERS[text]), {"x": x}), outputs(model, {"x": x}))
    assert "in 1 of 1 linear layers" in on.notices[-1]
    assert "2 of 8" in on.notices[-1]
    assert ["2 of 8 columns" in reason for reason in on.plan.kept_float.values()] == [True]


def test_a_layer_that_is_mostly_outliers_stays_whole() -> None:
    for outliers, whole in ((range(4), False), (range(5), True)):
        model, on = split(MATMUL, LAYERS[MATMUL], with_outliers(normal(5, 8), *outliers))
        assert ([n.op_type for n in model.graph] == ["MatMul", "Add"]) is whole
        assert f"{len(outliers)} of 8 columns" in next(iter(on.plan.kept_float.values()))


def test_golden() -> None:
    """Two layers share the parts of their input; the third has no outliers."""
    text = (
        head()
        + """g (float[S,8] x) => (float[S,6] y) {
        p = MatMul (x, w) a = Add (p, b) c = Gemm (x, v) d = Add (a, c) e = Tanh (d) y = MatMul (e, u) }"""
    )
    weights = {"w": normal(8, 6), "b": normal(6), "v": normal(8, 6), "u": normal(6, 6)}
    x = with_outliers(normal(5, 8), 1, 6)
    model, _ = split(text, weights, x)
    before = model_of(text, weights)
    run(before, *NAMED)
    text = f"# before\n{print_model(before)}\n# after\n{print_model(model, provenance=True)}"
    assert_golden("passes/split-outliers", text)


def rows(x: np.ndarray[Any, Any], w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """s_x s_w (X_q W_q): a scale for each row of X and each column of W."""
    s_x, s_w = np.abs(x).max(1, keepdims=True) / 127, np.abs(w).max(0) / 127
    return np.asarray(np.rint(x / s_x) @ np.rint(w / s_w) * s_x * s_w)


@pytest.mark.parametrize(("threshold", "outliers"), [(1e9, ()), (6.0, (1, 6)), (1e-9, tuple(range(16)))])
def test_closed_form(threshold: float, outliers: tuple[int, ...]) -> None:
    """Row-wise by column-wise int8 without the outlier columns, these in float."""
    x, w = with_outliers(normal(5, 16), 1, 6), normal(16, 8)
    text = head() + "g (float[S,16] x) => (float[S,8] y) { y = MatMul (x, w) }"
    options = f"split-outliers.threshold={threshold}", "precision.dtype=float32"
    done = int8(text, {"w": w}, [{"x": x}], *options, recipe=RECIPE, target=target_named("cuda"))
    keep = np.ones(16)
    keep[list(outliers)] = 0
    expected = (x * (1 - keep)) @ w
    if keep.any():
        expected = expected + rows(x * keep, w * keep[:, None])
    np.testing.assert_allclose(done.plain["y"], expected, rtol=1e-5, atol=1e-5)
    assert ("MatMulInteger" in done.kernels()) is bool(keep.any())


@pytest.fixture(scope="module")
def massive() -> list[dict[str, Any]]:
    """Inputs of a decoder with one column a hundred times as large as the others."""
    samples = [{"x": normal(1, 16, WIDTH, seed=i)} for i in range(4)]
    for sample in samples:
        sample["x"][..., 3] *= 100
    return samples


def decoder(samples: list[dict[str, Any]], *options: str, target: str = "cuda") -> Lowered:
    options = (*options, "precision.dtype=float32") if target == "cuda" else options
    return compiled(ir.to_proto(llama()), samples, *options, recipe=RECIPE, target=target_named(target))


def test_a_decoder_with_massive_activations_keeps_its_answers(massive: list[dict[str, Any]]) -> None:
    without = decoder(massive, "split-outliers.threshold=1e9")
    done = decoder(massive)
    assert done.sqnr("y") > without.sqnr("y") + 3, "most of y is the exact residual"
    assert set(done.plan.units) == set(without.plan.units), "the same layers are int8"


def test_what_multiplies_outliers_is_never_placed(massive: list[dict[str, Any]]) -> None:
    done = compiled(ir.to_proto(llama()), massive, recipe=RECIPE)
    exact = {n.name for n in done.model.graph if n.op_type == "MatMul" and str(n.name).endswith("_outliers")}
    assert exact
    assert exact <= done.plan.kept_float.keys()
    assert "MatMulNBits" in done.kernels()


def test_one_scale_for_the_whole_input_is_lowered_too(massive: list[dict[str, Any]]) -> None:
    done = compiled(ir.to_proto(llama()), massive, "place-dynamic.per-token=false", recipe=RECIPE)
    assert "DynamicQuantizeMatMul" in done.kernels()
    assert done.sqnr("y") > 40


def test_a_layer_that_no_sample_reaches_is_named() -> None:
    text = (
        head()
        + """g (float[S,8] x, bool c) => (float[S,6] y) {
        y = If (c) <then_branch = a () => (float[S,6] p) { p = MatMul (x, w) },
                    else_branch = b () => (float[S,6] q) { h = Tanh (x) q = MatMul (h, v) }> }"""
    )
    model, on = model_of(text, {"w": normal(8, 6), "v": normal(8, 6)}), context()
    on.calibration = Samples({"x": normal(3, 8), "c": np.array(True)})
    run(model, *NAMED, Calibrate(), SplitOutliers(), on=on)
    assert "outlier columns of 1 linear layers are not known" in on.notices[-1]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), threshold=st.floats(0.5, 5))
def test_the_function_stays_at_any_threshold(seed: int, threshold: float) -> None:
    x = normal(3, 8, seed=seed)
    model, _ = split(MATMUL, LAYERS[MATMUL], x, threshold)
    assert_close(outputs(model_of(MATMUL, LAYERS[MATMUL]), {"x": x}), outputs(model, {"x": x}))


def test_bad_options() -> None:
    with pytest.raises(RecipeError, match="threshold"):
        RECIPE.with_overrides(["split-outliers.threshold=0"]).passes()
