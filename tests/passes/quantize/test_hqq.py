"""HQQ: the loss never rises, falls below the published implementation's, and the runtime takes such zero points."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.compiler.context import CompileContext
from qcompile.compiler.formats import INT8, UINT2, UINT4, UINT8, Scales
from qcompile.compiler.graph import nodes
from qcompile.compiler.params import QuantParams, dequantize
from qcompile.compiler.passes import Pass
from qcompile.compiler.simulation import lowered_copy
from qcompile.compiler.specs import PerBlock, PerChannel, PerTensor, QuantSpec
from qcompile.compiler.weight_params import squared_errors, sums, weight_codes, weight_params
from qcompile.passes.quantize.hqq import Hqq, solved
from qcompile.passes.quantize.place_weights import PlaceWeights
from qcompile.passes.quantize.round_to_nearest import RoundToNearest
from tests.compiler.test_weight_params import Floats, normal, weights
from tests.compiler.walks import ready, whole
from tests.golden import assert_golden
from tests.passes.harness import NAMED, model_of
from tests.passes.int8 import head
from tests.passes.llama import llama
from tests.passes.quantize.test_gptq import noise, sentences


def missed(weight: Floats, params: QuantParams) -> Floats:
    return np.asarray(dequantize(weight_codes(weight, params), params)) - weight


def loss(weight: Floats, params: QuantParams) -> float:
    return float((np.abs(missed(weight, params), dtype=np.float64) ** 0.7).mean())


specs = st.builds(
    QuantSpec,
    st.sampled_from([UINT4, UINT2, UINT8, INT8]),
    st.sampled_from([PerTensor(), PerChannel(0), PerChannel(1), PerBlock(0, 4), PerBlock(1, 3)]),
    scales=st.sampled_from([None, Scales.FLOAT16]),
)


@given(weight=weights, spec=specs)
def test_no_block_has_more_loss_than_round_to_nearest(weight: Floats, spec: QuantSpec) -> None:
    planned = weight_params(weight, spec)
    found = solved(weight, planned)
    np.testing.assert_array_equal(found.scale, planned.scale)
    assert found.zero_point.dtype == np.float32
    scale = np.abs(planned.scale.astype(np.float64)) ** 0.7
    before, after = (sums(np.abs(missed(weight, p).astype(np.float64)) ** 0.7, spec) / scale for p in (planned, found))
    assert (after <= before + 1e-3 * weight.size).all()


@pytest.mark.parametrize(
    ("kind", "block", "published"),
    [
        ("normal", 32, 0.0142231),
        ("normal", 64, 0.0160705),
        ("heavy tails", 32, 0.0195567),
        ("heavy tails", 64, 0.0236473),
    ],
)
def test_the_loss_is_below_that_of_the_authors_package(kind: str, block: int, published: float) -> None:
    """Facts from hqq 0.2.8.post1: 4 bits, axis 1, optimized, zero points not rounded, mean |w - w~|^0.7. Its steps are
    in units of the weights, so that for small ones they are those of p = 2."""
    if kind == "normal":
        weight = np.random.default_rng(11).standard_normal((96, 256)).astype(np.float32) * 0.04
    else:
        weight = np.random.default_rng(12).standard_t(4, (96, 256)).astype(np.float32) * 0.04
    planned = weight_params(weight, QuantSpec(UINT4, PerBlock(1, block)))
    found = solved(weight, planned)
    assert loss(weight, found) < published < loss(weight, planned)
    assert squared_errors(weight, found).sum() < squared_errors(weight, planned).sum()


def test_weights_of_any_magnitude_have_the_same_codes() -> None:
    spec = QuantSpec(UINT4, PerBlock(1, 32))
    small, large = (w * normal(8, 64) for w in np.float32([2.0**-12, 2.0**12]))
    codes = [weight_codes(w, solved(w, weight_params(w, spec))) for w in (small, large)]
    np.testing.assert_array_equal(*codes)


def test_a_grid_between_two_codes_is_found() -> None:
    """Weights that lie halfway between the codes of the range are met exactly."""
    weight = np.tile(np.arange(15, dtype=np.float32) - 7.5, (1, 2))
    weight[0, 0] = -8.0
    planned = QuantParams(QuantSpec(UINT4), np.asarray(1, np.float32), np.asarray(8, np.int32))
    found = solved(weight, planned)
    assert float(found.zero_point) == pytest.approx(7.5, abs=0.02)
    assert np.abs(missed(weight, found)).sum() < 1.5 < np.abs(missed(weight, planned)).sum()


def placed(fmt: str, model: ir.Model) -> tuple[ir.Model, CompileContext]:
    passes: list[Pass] = [*NAMED, PlaceWeights(format=fmt, block_size=16, symmetric=False), RoundToNearest()]  # type: ignore[arg-type]
    return ready(model, sentences(3), passes)


def test_a_decoder_gains_and_the_runtime_computes_the_planned_values() -> None:
    unseen = sentences(3, seed=50)
    model, context = placed("uint4", llama())
    before = noise(model, context, context.plan, unseen)
    Hqq().run(model, context)
    assert noise(model, context, context.plan, unseen) < 0.95 * before


ONE = head() + "g (float[N,32] x) => (float[N,8] y) { y = MatMul (x, w) }"


def test_zero_points_between_codes_reach_the_kernel() -> None:
    weight, x = normal(32, 8), np.eye(32, dtype=np.float32)
    model, context = placed("uint4", model_of(ONE, {"w": weight}))
    Hqq().run(model, context)
    [found] = context.plan.weights.values()
    assert (found.params.zero_point != np.rint(found.params.zero_point)).any()
    lowered = lowered_copy(model, context)
    assert "MatMulNBits" in [n.op_type for n in nodes(lowered)]
    y = whole(lowered, [{"x": x}])[0]["y"]
    np.testing.assert_allclose(y, dequantize(found.codes, found.params), atol=0.02)


def test_layers_without_zero_points_stay_and_a_notice_says_so() -> None:
    model, context = ready(
        model_of(ONE, {"w": normal(32, 8)}),
        sentences(1),
        [*NAMED, PlaceWeights(format="int4", block_size=16, symmetric=True), RoundToNearest()],
    )
    before = dict(context.plan.weights)
    Hqq().run(model, context)
    assert context.plan.weights == before
    assert "1 of 1 layers keep their zero points" in context.notices[-1]


TIED = head(21) + "g (int64[N] ids) => (float[N,64] y) { x = Gather (t, ids)  y = MatMul (x, u) }"


def test_a_head_whose_codes_are_looked_up_too_keeps_whole_zero_points() -> None:
    table, ids = normal(64, 32), {"ids": np.arange(20)}
    weights = {"t": table, "u": np.ascontiguousarray(table.T)}
    passes: list[Pass] = [*NAMED, PlaceWeights(format="uint4", block_size=16, symmetric=False), RoundToNearest()]
    model, context = ready(model_of(TIED, weights), [ids], passes)
    assert context.plan.units["Gather_0"].tied == "MatMul_1"
    Hqq().run(model, context)
    assert context.plan.weights["u", "MatMul_1"].params.zero_point.dtype == np.int32
    exact, found = (whole(m, [ids])[0]["y"] for m in (model, lowered_copy(model, context)))
    assert np.corrcoef(exact.ravel(), found.ravel())[0, 1] > 0.98


def test_golden() -> None:
    model, context = placed("uint4", model_of(ONE, {"w": normal(32, 8)}))
    [before] = context.plan.weights.values()
    Hqq().run(model, context)
    [found] = context.plan.weights.values()
    texts = [
        f"{found.params.spec}\nzero points\n{np.array2string(weight.params.zero_point, precision=3)}\n"
        f"codes\n{weight.codes.astype(int)}\n"
        for weight in (before, found)
    ]
    assert_golden("passes/hqq", "# before\n" + "\n# after\n".join(texts))
