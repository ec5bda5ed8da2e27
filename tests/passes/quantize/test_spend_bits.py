"""Which layers get more bits: the ranking against brute force, the budget, and what it measures."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.formats import INT8
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.plan import Unit
from qcompile.compiler.specs import PerBlock
from qcompile.errors import DataError, RecipeError
from qcompile.passes.quantize.place_weights import PlaceWeights
from qcompile.passes.quantize.spend_bits import Layer, SpendBits, choose
from tests.golden import assert_golden
from tests.passes.harness import NAMED, model_of
from tests.passes.int8 import normal
from tests.passes.llama import HEAD as HEAD_WIDTH
from tests.passes.llama import HIDDEN, SHARED, WIDTH, llama
from tests.passes.transform.graphs import HEAD
from tests.sweep.harness import Samples, eager_target


def layer(name: str, size: int, bits: float = 4.5, wide_bits: float = 8.5) -> Layer:
    unit = cast("Unit", None)
    return Layer(name, cast("ir.Node", None), unit, size, bits, unit, wide_bits)


WEIGHTS = 2 * WIDTH * (2 * WIDTH + 2 * SHARED * HEAD_WIDTH + 3 * HIDDEN)
"""Of all linear layers of the small decoder."""

budgets = st.floats(4.5, 8.6)
problems = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 20)), min_size=1, max_size=8)


@given(problems, budgets)
def test_the_average_stays_within_the_budget_and_one_layer_of_the_optimum(
    problem: list[tuple[float, int]], bits: float
) -> None:
    layers = [layer(str(i), size) for i, (_, size) in enumerate(problem)]
    gains = {str(i): gain for i, (gain, _) in enumerate(problem)}
    total = sum(x.size for x in layers)
    raised = choose(layers, gains, bits)
    spent = sum(x.size * (x.wide_bits if x.name in raised else x.bits) for x in layers)
    assert spent <= bits * total * (1 + 1e-9)
    best = 0.0
    for chosen in itertools.product((False, True), repeat=len(layers)):
        cost = sum(x.size * (x.wide_bits if c else x.bits) for x, c in zip(layers, chosen, strict=True))
        if cost <= bits * total:
            best = max(best, sum(gains[x.name] for x, c in zip(layers, chosen, strict=True) if c))
    found = sum(gains[name] for name in raised)
    assert found >= best - max(gains.values()) - 1e-9
    if bits >= 8.5:
        assert found == pytest.approx(sum(gains.values()))


def test_too_few_bits_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"4\.50 bits on average before any is raised"):
        choose([layer("a", 3)], {"a": 1.0}, 4.4)


def placed(block: int = 16, **options: Any) -> tuple[ir.Model, CompileContext]:
    model, context = llama(2), CompileContext(eager_target(), Path("unused"))
    data: list[Sample] = [{"x": normal(1, 12, WIDTH, seed=i)} for i in range(3)]
    context.calibration = Samples(data)
    run_pipeline([*NAMED, PlaceWeights(block_size=block, **options)], model, context)  # type: ignore[arg-type]
    return model, context


def average(model: ir.Model, context: CompileContext) -> float:
    layers = SpendBits().layers(model, context).values()
    return sum(layer.size * layer.bits for layer in layers) / sum(layer.size for layer in layers)


def test_the_layer_that_hurts_most_is_raised_first() -> None:
    """One large weight in each block leaves the others few codes."""
    model, context = placed(32)
    value = model.graph.initializers["w_gate1"]
    assert value.const_value is not None
    spoilt = value.const_value.numpy().copy()
    spoilt[0] = 3
    value.const_value = ir.tensor(spoilt)
    plain = dict(context.plan.units)
    SpendBits(bits=average(model, context) + 4 * spoilt.size / WEIGHTS).run(model, context)
    [raised] = [name for name, unit in context.plan.units.items() if unit.weight_spec != plain[name].weight_spec]
    unit = context.plan.units[raised]
    assert unit.weight == "w_gate1"
    assert unit.weight_spec is not None
    assert unit.weight_spec.format is INT8
    assert unit.weight_spec.granularity == PerBlock(0, 32)
    assert "1 of 14 linear layers get int8 weights" in context.notices[-1]


def test_embedding_and_head_do_not_count() -> None:
    model, context = placed(32)
    weights = SpendBits().layers(model, context)
    assert sum(x.size for x in weights.values()) == WEIGHTS
    text = f"""{HEAD} g (int64[B,S] ids) => (float[B,S,64] logits) {{
        x = Gather (table, ids) h = MatMul (x, w) a = Relu (h) z = MatMul (a, w2) logits = MatMul (z, lm) }}"""
    shapes = {"table": (64, 32), "w": (32, 48), "w2": (48, 32), "lm": (32, 64)}
    tiny = model_of(text, {name: normal(*shape) for name, shape in shapes.items()})
    context = CompileContext(eager_target(), Path("unused"))
    run_pipeline([*NAMED, PlaceWeights()], tiny, context)
    assert "lm" in {u.weight for u in context.plan.units.values()}
    assert {x.unit.weight for x in SpendBits().layers(tiny, context).values()} == {"w", "w2"}


def test_nothing_is_raised_without_room() -> None:
    model, context = placed(32)
    before = dict(context.plan.units)
    SpendBits(bits=average(model, context) + 1e-6).run(model, context)
    assert context.plan.units == before


def test_needs_samples() -> None:
    model, context = placed()
    with pytest.raises(DataError, match="no calibration samples"):
        SpendBits().run(model, replace(context, calibration=None))


def test_golden() -> None:
    model, context = placed(32)
    before = [f"{u.node} {u.weight}: {u.weight_spec}\n" for u in context.plan.units.values()]
    SpendBits(bits=5.2).run(model, context)
    after = [f"{u.node} {u.weight}: {u.weight_spec}\n" for u in context.plan.units.values()]
    assert_golden("passes/spend-bits", f"# before\n{''.join(before)}\n# after\n{''.join(after)}{context.notices[-1]}\n")
