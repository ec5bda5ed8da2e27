"""Compensated layers have no mean error on the samples that they were measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

from qcompile.compiler.block_walker import product_of
from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.passes import Pass
from qcompile.compiler.plan import Form
from qcompile.compiler.printer import print_model
from qcompile.compiler.simulation import lowered_copy
from qcompile.errors import DataError
from qcompile.passes.analyze.calibrate import Calibrate
from qcompile.passes.quantize import compensate_bias
from qcompile.passes.quantize.compensate_bias import CompensateBias
from qcompile.passes.quantize.round_to_nearest import RoundToNearest
from tests.compiler.test_block_walker import deep
from tests.compiler.test_block_walker import rows as deep_rows
from tests.compiler.walks import QUANTIZED, ready, whole
from tests.golden import assert_golden
from tests.passes.harness import model_of
from tests.passes.int8 import Array, check, head, int8, normal
from tests.sweep.harness import RECIPE, Samples, compile_in_memory, eager_target, session, sqnr
from tests.sweep.random_graphs import graphs, samples

AT = next(i for i, p in enumerate(RECIPE) if isinstance(p, RoundToNearest)) + 1
STEPS: list[Pass] = [*RECIPE[:AT], CompensateBias(), *RECIPE[AT:]]

IMAGES = (
    head()
    + """g (float[N,4,8,8] x) => (float[N,6] y) {
    c0 = Conv <pads = [1,1,1,1]> (x, w0, b0)  r0 = Relu (c0)
    c1 = Conv <pads = [1,1,1,1], group = 8> (r0, w1)  r1 = Clip (c1, zero, six)
    c2 = Conv (r1, w2, b2)  s = Add (c2, x)
    c3 = Conv <strides = [2,2]> (s, w3, b3)  r3 = Relu (c3)
    p = GlobalAveragePool (r3)  f = Flatten (p)
    y = Gemm <transB = 1> (f, w4) }"""
)
IMAGE_WEIGHTS: dict[str, Array] = {
    "w0": normal(8, 4, 3, 3) / 6,
    "b0": normal(8),
    "w1": normal(8, 1, 3, 3) / 3,
    "w2": normal(4, 8, 1, 1) / 3,
    "b2": normal(4),
    "w3": normal(12, 4, 2, 2) / 4,
    "b3": normal(12),
    "w4": normal(6, 12) / 4,
    "zero": np.float32(0),
    "six": np.float32(6),
}
LINEAR = (
    head()
    + """g (float[N,5,8] x) => (float[N,5,8] y) {
    q = MatMul (x, wq)  k = MatMul (x, wk)  kb = Add (k, bk)  a = Mul (q, kb)
    h = MatMul (a, wh)  t = Tanh (h)
    o = MatMul (t, wo)  ob = Add (bk, o)  y = Add (ob, x) }"""
)
LINEAR_WEIGHTS: dict[str, Array] = {
    "wq": normal(8, 8) / 3,
    "wk": normal(8, 8, seed=1) / 3,
    "wh": normal(8, 16) / 3,
    "wo": normal(16, 8) / 4,
    "bk": normal(8),
}


def images(count: int = 3) -> list[Sample]:
    return [{"x": normal(1 + i % 2, 4, 8, 8, seed=i) + np.float32(0.5)} for i in range(count)]


def rows(count: int = 3) -> list[Sample]:
    return [{"x": normal(1 + i % 2, 5, 8, seed=i) + np.float32(0.5)} for i in range(count)]


CASES = {"images": (IMAGES, IMAGE_WEIGHTS, images()), "rows": (LINEAR, LINEAR_WEIGHTS, rows())}


def compensated(
    text: str, weights: dict[str, Array], feeds: Sequence[Sample], options: CompensateBias | None = None
) -> tuple[ir.Model, ir.Model, CompileContext, bool]:
    """The float model before the pass and after it, and what the pass returned."""
    model, context = ready(model_of(text, dict(weights)), feeds, QUANTIZED)
    before = model.clone()
    return before, model, context, (options or CompensateBias()).run(model, context)


def undone(context: CompileContext) -> list[str]:
    return [notice for notice in context.notices if "undone" in notice]


def tapped(model: ir.Model, name: str, feeds: Sequence[Sample]) -> list[Array]:
    model.graph.outputs[:] = [next(v for n in model.graph for v in n.outputs if v.name == name)]
    return [found[name] for found in whole(model, feeds)]


def mean_errors(
    before: ir.Model, model: ir.Model, context: CompileContext, feeds: Sequence[Sample]
) -> dict[str, Array]:
    """Mean error of each channel of each layer before its activation and rounding, in the whole quantized model."""
    found, plan = {}, context.plan
    for unit in [u for u in plan.units.values() if u.weight is not None]:
        name = product_of(unit, model)
        alone = replace(unit, form=Form.INPUTS, activation=None, output=name)
        copy = lowered_copy(_up_to(model, name), context, replace(plan, units=plan.units | {unit.node: alone}))
        given, exact = tapped(copy, name, feeds), tapped(before.clone(), name, feeds)
        channel = 1 if unit.op_type == "Conv" else -1
        errors = [np.moveaxis(g.astype(np.float64) - e, channel, -1) for g, e in zip(given, exact, strict=True)]
        found[unit.node] = np.concatenate([e.reshape(-1, e.shape[-1]) for e in errors]).mean(axis=0)
    return found


def _up_to(model: ir.Model, name: str) -> ir.Model:
    graph = ir.convenience.extract(model.graph, ["x"], [name])
    return ir.Model(graph, ir_version=model.ir_version)


@pytest.mark.parametrize("case", CASES)
def test_the_mean_error_of_every_layer_is_zero(case: str) -> None:
    text, weights, feeds = CASES[case]
    before, model, context, modified = compensated(text, weights, feeds)
    assert modified
    assert undone(context) == []
    for node, errors in mean_errors(before, model, context, feeds).items():
        unit = context.plan.units[node]
        step = (
            context.plan.tensors[str(unit.inputs[0])].scale * context.plan.weights[str(unit.weight), node].params.scale
        )
        rounding = 0.51 * step if unit.op_type in ("Conv", "Gemm") else 0.0  # their bias becomes int32 codes
        np.testing.assert_array_less(np.abs(errors), rounding + 2e-6, err_msg=node)


@pytest.mark.parametrize("case", CASES)
def test_without_compensation_it_is_not(case: str) -> None:
    text, weights, feeds = CASES[case]
    model, context = ready(model_of(text, dict(weights)), feeds, QUANTIZED)
    assert all(np.abs(e).max() > 1e-4 for e in mean_errors(model, model, context, feeds).values())


@pytest.mark.parametrize("case", CASES)
def test_the_outputs_are_closer_on_other_samples(case: str) -> None:
    """Inputs with a mean, as behind an activation: there rounded weights shift the result."""
    text, weights, _ = CASES[case]
    made = (images if case == "images" else rows)(40)
    fresh, feeds = ([{"x": s["x"] / 4 + 2} for s in part] for part in (made[16:], made[:16]))
    exact = whole(model_of(text, dict(weights)), fresh)
    noise = {}
    for name, steps in {"plain": RECIPE, "compensated": STEPS}.items():
        compiled = compile_in_memory(ir.to_proto(model_of(text, dict(weights))), feeds, steps, eager_target())
        given = whole(ir.from_proto(onnx.load_from_string(compiled.data)), fresh)
        noise[name] = np.mean([np.square(g["y"] - e["y"]).mean() for g, e in zip(given, exact, strict=True)])
    assert noise["compensated"] < 0.9 * noise["plain"]


def test_a_product_without_a_bias_gets_one_that_fuses() -> None:
    result = int8(LINEAR, LINEAR_WEIGHTS, rows(), passes=STEPS)
    check(result)
    kinds = [n.op_type for n in result.model.graph]
    assert kinds.count("MatMulIntegerToFloat") == 4
    assert kinds.count("Add") == 1, "only the residual; every bias went into its product"
    assert all(u.bias is not None for u in result.plan.units.values() if u.op_type == "MatMul")


def test_convolutions_without_a_bias_get_one() -> None:
    result = int8(IMAGES, IMAGE_WEIGHTS, images(), passes=STEPS)
    check(result)
    assert result.kernels().count("QLinearConv") == 4


def test_a_shared_bias_is_untied() -> None:
    before, model, context, _ = compensated(LINEAR, LINEAR_WEIGHTS, rows())
    adds = [n for n in model.graph if n.name in {u.bias for u in context.plan.units.values()}]
    read = [next(v.name for v in n.inputs if v is not None and v.is_initializer()) for n in adds]
    assert len(set(read)) == len(read) == 4
    np.testing.assert_array_equal(before.graph.initializers["bk"].const_value.numpy(), LINEAR_WEIGHTS["bk"])  # type: ignore[union-attr]


def test_what_makes_other_samples_worse_is_undone() -> None:
    """Where every fourth sample differs from the others, their mean error says nothing about it."""
    feeds = rows(8)
    for i in (3, 7):
        feeds[i] = {"x": -feeds[i]["x"] * np.float32(3)}
    before, model, context, modified = compensated(LINEAR, LINEAR_WEIGHTS, feeds)
    assert not modified
    assert undone(context) == ["bias compensation was undone in 2 of 2 blocks: it made other samples worse"]
    assert print_model(model) == print_model(before)
    assert all(u.bias is None for u in context.plan.units.values() if u.weight in ("wq", "wh"))


def test_only_as_many_samples_as_asked_for() -> None:
    feeds = rows(8)
    before, model, context, _ = compensated(LINEAR, LINEAR_WEIGHTS, feeds, CompensateBias(samples=3))
    for some, zero in ((feeds[:3], True), (feeds, False)):
        largest = max(np.abs(e).max() for e in mean_errors(before, model, context, some).values())
        assert bool(largest < 2e-6) is zero


def test_without_samples_there_is_an_error() -> None:
    model, context = ready(model_of(LINEAR, dict(LINEAR_WEIGHTS)), rows(), QUANTIZED)
    context.calibration = Samples([])
    with pytest.raises(DataError, match="no calibration samples"):
        CompensateBias().run(model, context)


def test_an_interrupted_run_goes_on_to_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    compensate = compensate_bias._Block.compensate

    def run(*, resume: bool, stop_at: int = -1) -> str:
        def counting(block: compensate_bias._Block) -> dict[str, Array]:
            if block.visit.index == stop_at:
                raise KeyboardInterrupt
            done.append(block.visit.index)
            return compensate(block)

        model, context = ready(deep(), deep_rows(), QUANTIZED)
        context.checkpoint, context.resume = tmp_path / "c", resume
        monkeypatch.setattr(compensate_bias._Block, "compensate", counting)
        CompensateBias().run(model, context)
        return print_model(lowered_copy(model, context))

    with pytest.raises(KeyboardInterrupt):
        run(resume=False, stop_at=1)
    resumed = run(resume=True)
    assert done == [0, 1]
    assert resumed == run(resume=False)
    assert done == [0, 1, 0, 1]


def test_golden() -> None:
    """The graph: where biases come in and under which names. Their last digits depend on the machine."""
    before, model, _, _ = compensated(LINEAR, LINEAR_WEIGHTS, rows())
    for name, value in model.graph.initializers.items():
        if len(value.shape or ()) == 1:
            value.const_value = ir.tensor(np.zeros(value.shape.numpy(), np.float32), name=name)  # type: ignore[union-attr]
    assert_golden("passes/compensate-bias", f"# before\n{print_model(before)}\n# after\n{print_model(model, True)}")


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(model=graphs())
def test_random_graphs_stay_close(model: onnx.ModelProto) -> None:
    feeds = samples(model)
    steps = [Calibrate(method="min-max") if isinstance(p, Calibrate) else p for p in STEPS]
    compiled = compile_in_memory(model, feeds, steps, eager_target())
    exact, given_ = session(model.SerializeToString(), optimized=False), session(compiled.data, optimized=True)
    for feed in feeds:
        wanted = {i.name for i in exact.get_inputs()}
        fed = {k: v for k, v in feed.items() if k in wanted}
        for y, z in zip(exact.run(None, fed), given_.run(None, fed), strict=True):
            assert np.isfinite(z).all()
            assert sqnr(y, z) > 15
