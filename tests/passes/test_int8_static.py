"""Golden texts of the passes from calibration to lowering: the graph and what the plan says, before and after.

Weights and samples are small integers, so that every sum is exact and the texts are the same on every machine.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext
from qcompile.compiler.passes import Pass, import_passes
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.printer import print_model
from qcompile.frontends.builtin_recipes import find_recipe
from tests.golden import assert_golden
from tests.passes.harness import Arrays, model_of
from tests.sweep.harness import Samples, eager_target

import_passes("qcompile.passes")

IMAGE = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,3,8,8] x) => (float[N,5] y) {
  c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  r = Relu (c)
  d = Conv (r, v)
  s = Add (d, r)
  p = GlobalAveragePool (s)
  f = Flatten (p)
  y = Gemm (f, g, h)
}"""
TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (int64[N,4] ids, float[N,4,6] mask, bool c) => (float[N,4,6] y) {
  e = Gather (table, ids)
  m = MatMul (e, w)
  a = Add (m, b)
  s = Add (a, mask)
  l = LayerNormalization (s, one, b)
  y = If (c) <
    then_branch = t () => (float[N,4,6] p) { p = MatMul (e, v) },
    else_branch = n () => (float[N,4,6] q) { q = Relu (l) }
  >
}"""

SPEECH = """<ir_version: 8, opset_import: ["": 17]>
g (float[T,N,3] x) => (float[1,N,2] y) {
  s, h = LSTM <hidden_size = 2> (x, w, r, b)
  q = Squeeze (s, one)
  u, y = GRU <hidden_size = 2> (q, v, p)
}"""

State = tuple[str, str]
"""The graph, and the statistics with the plan."""

MODEL_OF_PASS = {
    "calibrate": IMAGE,
    "place-int8": IMAGE,
    "round-to-nearest": IMAGE,
    "lower-qdq": IMAGE,
    "lower-integer-matmul": TEXT,
    "lower-rows": TEXT,
    "detour-slow-fusions": TEXT,
    "place-dynamic": TEXT,
    "place-weights": TEXT,
    "lower-dynamic": TEXT,
    "lower-blocks": TEXT,
    "lower-dynamic-lstm": SPEECH,
    "lower-weights": SPEECH,
    "choose-forms": TEXT,
    "smooth-quant": IMAGE,
}
RECIPE_OF_PASS = {
    "smooth-quant": ("int8-smoothquant", "smooth-quant.alpha=0.5"),
    "place-dynamic": ("int8-dynamic",),
    "place-weights": ("int4-rtn",),
    "lower-dynamic": ("int8-dynamic", "place-dynamic.per-token=false"),
    "lower-dynamic-lstm": ("int8-dynamic",),
    "lower-weights": ("int8-dynamic",),
    "lower-blocks": ("int8-dynamic",),
    "choose-forms": ("int8-accurate", "calibrate.method=min-max", "place-int8.resolution=100"),
}
"""Where it is not int8-static: the recipe and what is changed of it."""


def whole(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Integers from -4 to 4 that depend on the shape alone."""
    return np.random.default_rng(shape).integers(-4, 5, shape).astype(np.float32)


def inputs(text: str) -> tuple[Arrays, Samples]:
    """Weights and two samples."""
    if text is IMAGE:
        weights = {"w": whole(4, 3, 3, 3), "b": whole(4), "v": whole(4, 4, 1, 1), "g": whole(4, 5), "h": whole(5)}
        return weights, Samples([{"x": whole(n, 3, 8, 8)} for n in (1, 2)])
    if text is SPEECH:
        weights = {
            "w": whole(1, 8, 3),
            "r": whole(1, 8, 2),
            "b": whole(1, 16),
            "v": whole(1, 6, 2),
            "p": whole(1, 6, 2),
        }
        return weights | {"one": np.array([1])}, Samples([{"x": whole(4, n, 3)} for n in (1, 2)])
    weights = {
        "table": whole(9, 6),
        "w": whole(6, 6),
        "v": whole(6, 6) + 1,
        "b": whole(6),
        "one": np.ones(6, np.float32),
    }
    ids = np.arange(8, dtype=np.int64).reshape(2, 4)
    return weights, Samples([{"ids": ids, "mask": whole(2, 4, 6), "c": np.array(i == 0)} for i in range(2)])


@cache
def states(text: str, recipe: str, *options: str) -> dict[str, tuple[State, State]]:
    """The state before and after each pass of a recipe."""
    weights, samples = inputs(text)
    model = model_of(text, weights)
    context = CompileContext(eager_target(), Path("unused"), calibration=samples, held_out=[samples[0]])
    found: dict[str, tuple[State, State]] = {}
    before = print_model(model, provenance=True), describe(context)

    def remember(done: Pass, now: ir.Model) -> None:
        nonlocal before
        after = print_model(now, provenance=True), describe(context)
        found[done.name], before = (before, after), after

    run_pipeline(find_recipe(recipe).with_overrides(options).passes(), model, context, remember)
    return found


def describe(context: CompileContext) -> str:
    """Statistics and plan as text."""
    lines: list[str] = []
    for name in sorted(context.statistics.vectors.get("range", {})):
        seen = context.statistics.range_of(name)
        if seen is not None:
            lines.append(f"range {name}: {seen.low:.6g} to {seen.high:.6g}, mean magnitude {seen.mean_magnitude:.6g}\n")
    plan = context.plan
    lines += [f"unit {replace(unit, form=unit.form.name)}\n" for unit in plan.units.values()]
    lines += [f"stored {u.node}: {u.weight_spec}, {u.lowering}\n" for u in plan.units.values() if u.lowering]
    lines += [f"float {node}: {reason}\n" for node, reason in plan.kept_float.items()]
    for name, params in plan.tensors.items():
        lines.append(f"tensor {name}: {params.spec}, scale {params.scale:.6g}, zero point {params.zero_point}\n")
    for (name, unit), weight in plan.weights.items():
        lines.append(
            f"weight {name} of {unit}: {weight.params.spec}, codes {weight.codes.reshape(-1)[:6].tolist()} ...\n"
        )
    return "".join(lines)


@pytest.mark.parametrize("name", MODEL_OF_PASS)
def test_golden(name: str) -> None:
    recipe = RECIPE_OF_PASS.get(name, ("int8-static", "calibrate.method=min-max"))
    before, after = states(MODEL_OF_PASS[name], *recipe)[name]
    assert before != after, "the model must give the pass something to do"
    changes = [new if new != old else "(no change)\n" for old, new in zip(before, after, strict=True)]
    assert_golden(f"passes/{name}", "# before\n{}\n{}\n# after\n{}\n{}".format(*before, *changes))
