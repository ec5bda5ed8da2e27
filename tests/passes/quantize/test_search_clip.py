"""Clip search: never worse than the range, by the errors that count, and the optimum that is known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.formats import FORMATS, INT4, NF4, NVFP4, UINT4, NumericFormat, Scales
from qcompile.compiler.params import dequantize
from qcompile.compiler.passes import Pass
from qcompile.compiler.specs import PerBlock, PerTensor, QuantSpec
from qcompile.compiler.weight_params import squared_errors, weight_codes, weight_params
from qcompile.errors import DataError
from qcompile.passes.quantize.place_weights import PlaceWeights
from qcompile.passes.quantize.round_to_nearest import RoundToNearest
from qcompile.passes.quantize.search_clip import SearchClip, searched
from qcompile.passes.quantize.weight_grids import layers_that_read_float
from tests.compiler.test_weight_params import OF_WEIGHTS, normal, sqnr, weights
from tests.compiler.walks import QUANTIZED, ready
from tests.golden import assert_golden
from tests.passes.harness import NAMED, model_of
from tests.passes.int8 import head
from tests.passes.llama import llama
from tests.passes.quantize.test_compensate_bias import IMAGE_WEIGHTS, IMAGES, images
from tests.passes.quantize.test_gptq import noise, sentences
from tests.sweep.harness import Samples

BLOCKS: list[Pass] = [*NAMED, PlaceWeights(block_size=16, symmetric=True), RoundToNearest()]


def searched_model(
    model: ir.Model, feeds: Sequence[Sample], *, samples: bool = True, passes: Sequence[Pass] = BLOCKS
) -> tuple[ir.Model, CompileContext, CompileContext]:
    """The model, its context after the search and as it was before."""
    model, context = ready(model, feeds, passes)
    _, before = ready(model.clone(), feeds, passes)
    if not samples:
        context.calibration = None
    SearchClip().run(model, context)
    return model, context, before


specs = st.builds(
    QuantSpec,
    st.sampled_from(OF_WEIGHTS),
    st.sampled_from([PerTensor(), PerBlock(0, 4), PerBlock(1, 3)]),
    symmetric=st.booleans(),
    full_range=st.booleans(),
    scales=st.sampled_from([None, Scales.FLOAT16, Scales.POWER_OF_TWO, Scales.E4M3]),
)


@given(weight=weights, spec=specs, weighted=st.booleans())
def test_no_block_becomes_worse(weight: np.ndarray, spec: QuantSpec, weighted: bool) -> None:
    importance = np.abs(normal(len(weight), 1)) if weighted else None
    planned = weight_params(weight, spec)
    found = searched(weight, planned, importance)
    before, after = squared_errors(weight, planned, importance), squared_errors(weight, found, importance)
    assert (after <= before).all()
    assert found.spec == spec
    assert (found.scale != 0).all()


def test_a_gaussian_takes_the_step_of_least_error() -> None:
    """Max, "Quantizing for Minimum Distortion", 1960: 15 equal steps around zero are 0.353 standard deviations."""
    levels = NumericFormat("15 levels", ir.DataType.INT8, -7, 7, 10)
    weight = normal(1 << 16)
    found = searched(weight, weight_params(weight, QuantSpec(levels, symmetric=True)))
    assert float(found.scale) == pytest.approx(0.353, rel=0.04)
    assert float(squared_errors(weight, found)) / weight.size == pytest.approx(0.01289, rel=0.03)


@pytest.mark.parametrize(
    ("spec", "gain"),
    [
        (QuantSpec(UINT4, PerBlock(1, 32)), 0.35),
        (QuantSpec(INT4, PerBlock(1, 32), symmetric=True, full_range=True), 0.4),
        (QuantSpec(INT4, PerBlock(1, 128), symmetric=True), 1.0),
        (QuantSpec(NF4, PerBlock(1, 64)), 0.5),
        (QuantSpec(NF4, PerBlock(1, 64), scales=Scales.DOUBLE), 0.5),
        (QuantSpec(NVFP4, PerBlock(1, 16)), 0.5),
        (QuantSpec(FORMATS["mxfp4"], PerBlock(1, 32)), 0.25),
    ],
    ids=str,
)
def test_gaussian_weights_gain(spec: QuantSpec, gain: float) -> None:
    weight = normal(256, 512)
    params = searched(weight, weight_params(weight, spec))
    error = dequantize(weight_codes(weight, params), params).astype(np.float64) - weight
    after = 10 * np.log10(np.square(weight, dtype=np.float64).sum() / np.square(error).sum())
    assert after - sqnr(weight, spec) > gain


@pytest.mark.parametrize("samples", [True, False])
def test_a_decoder_gains(samples: bool) -> None:
    model, context, before = searched_model(llama(), sentences(6), samples=samples)
    unseen = sentences(3, seed=50)
    share = noise(model, context, context.plan, unseen) / noise(model, context, before.plan, unseen)
    assert share < (0.9 if samples else 0.96)


ONE = head() + "g (float[N,16] x) => (float[N,8] y) { y = MatMul (x, w) }"


def test_an_error_counts_as_much_as_its_input() -> None:
    """Of two weights of one block on a coarse grid, the one that the samples use is met."""
    weight = normal(16, 8)
    x = normal(64, 16) * np.where(np.arange(16) == 5, 30, 0.1)
    _, context, before = searched_model(model_of(ONE, {"w": weight}), [{"x": x.astype(np.float32)}])
    [found], [planned] = context.plan.weights.values(), before.plan.weights.values()
    error, was = (np.abs(dequantize(q.codes, q.params) - weight) for q in (found, planned))
    assert error[5].mean() < 0.6 * was[5].mean()
    assert error.mean() > was.mean()


def test_with_power_0_every_error_counts_the_same() -> None:
    found = []
    for power in (0.0, 0.5, 1.0):
        model, context = ready(llama(1), sentences(3), BLOCKS)
        planned = dict(context.plan.weights)
        SearchClip(power=power).run(model, context)
        found.append(np.concatenate([q.params.scale.ravel() for q in context.plan.weights.values()]))
    layers = {layer.key: layer for layer in layers_that_read_float(model, context)}
    alike = [searched(layers[key].weight(), q.params).scale.ravel() for key, q in planned.items()]
    np.testing.assert_array_equal(found[0], np.concatenate(alike))
    assert [(f != found[0]).any() for f in found[1:]] == [True, True]
    assert (found[1] != found[2]).any()


TIED = head() + "g (float[N,16] x) => (float[N,16] y) { a = MatMul (x, w)  r = Relu (a)  y = MatMul (r, w) }"


def test_a_weight_of_two_layers_keeps_one_set_of_codes() -> None:
    _, context, before = searched_model(model_of(TIED, {"w": normal(16, 16)}), [{"x": normal(64, 16)}])
    first, second = context.plan.weights.values()
    np.testing.assert_array_equal(first.codes, second.codes)
    assert any((first.codes != q.codes).any() for q in before.plan.weights.values())


LOOKED_UP = head(21) + "g (int64[N] ids) => (float[N,64] y) { x = Gather (t, ids)  y = MatMul (x, u) }"


def test_a_table_follows_the_head_that_it_is_tied_to() -> None:
    table = normal(64, 32)
    text = {"t": table, "u": np.ascontiguousarray(table.T)}
    _, context, before = searched_model(model_of(LOOKED_UP, text), [{"ids": np.arange(20)}])
    for (name, node), planned in before.plan.weights.items():
        moved = (context.plan.weights[name, node].params.scale != planned.params.scale).any()
        assert moved == (node == "MatMul_1"), "the codes of the head are those of the table"


def test_without_samples_large_weights_count_more_but_not_those_of_tables() -> None:
    weight = normal(64, 32)
    text = {"t": weight, "u": normal(32, 64)}
    _, context, before = searched_model(model_of(LOOKED_UP, text), [{"ids": np.arange(20)}], samples=False)
    for (name, node), found in context.plan.weights.items():
        planned = before.plan.weights[name, node].params
        expected = searched(text[name], planned, None if name == "t" else np.abs(text[name]))
        np.testing.assert_array_equal(found.params.scale, expected.scale)


def test_layers_whose_inputs_are_codes_keep_their_scales() -> None:
    _, context, before = searched_model(model_of(IMAGES, dict(IMAGE_WEIGHTS)), images(2), passes=QUANTIZED)
    for key, planned in before.plan.weights.items():
        np.testing.assert_array_equal(context.plan.weights[key].params.scale, planned.params.scale)


def test_a_killed_run_goes_on_to_the_same_codes(tmp_path: Path) -> None:
    found = []
    for resume in (False, True):
        model, context = ready(llama(1), sentences(3), BLOCKS)
        context.checkpoint, context.resume = tmp_path / "run.checkpoint", resume
        SearchClip().run(model, context)
        found.append(context.plan.weights)
        files = sorted(tmp_path.glob("run*/*.npz"))
        assert len(files) == 4, "q, k, v; output; gate, up; down"
        files[-1].unlink()
    for key, weight in found[0].items():
        np.testing.assert_array_equal(weight.codes, found[1][key].codes)


def test_golden() -> None:
    model = model_of(ONE, {"w": normal(16, 8)})
    _, context, before = searched_model(model, [{"x": normal(2, 16)}], samples=False)
    [(key, found)], [planned] = context.plan.weights.items(), before.plan.weights.values()
    texts = [
        f"{key[1]} {key[0]}: {found.params.spec}\nscales\n{np.array2string(weight.params.scale, precision=4)}\n"
        f"codes\n{weight.codes.astype(int)}\n"
        for weight in (planned, found)
    ]
    assert_golden("passes/search-clip", "# before\n" + "\n# after\n".join(texts))


def test_inputs_that_are_not_finite_are_refused() -> None:
    model, context = ready(model_of(ONE, {"w": normal(16, 8)}), [{"x": normal(4, 16)}], BLOCKS)
    context.calibration = Samples([{"x": np.full((4, 16), np.inf, np.float32)}])
    with pytest.raises(DataError, match="the input of 'MatMul_0' is not finite"):
        SearchClip().run(model, context)
