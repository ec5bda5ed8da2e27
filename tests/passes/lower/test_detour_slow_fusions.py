"""Sum in the place of Add, where the runtime would fuse and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.passes.lower.detour_slow_fusions import DetourSlowFusions
from tests.passes.harness import context, model_of, outputs
from tests.passes.int8 import head, int8, normal
from tests.sweep.harness import eager_target

HEAD = head() + "g (float[2,6,16] x, float[2,6,16] r) => (float[2,6,16] y, float[2,6,16] z) "
WEIGHTS = {"s": normal(16, seed=1), "b": normal(16, seed=2)}
FEEDS = {"x": normal(2, 6, 16), "r": normal(2, 6, 16, seed=1)}


def detoured(text: str) -> list[str]:
    model = model_of(text, WEIGHTS)
    before, on = outputs(model, FEEDS), context()
    on.target = eager_target()
    changed = DetourSlowFusions().run(model, on)
    assert changed == ("Sum" in [n.op_type for n in model.graph])
    for a, b in zip(before, outputs(model, FEEDS), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not DetourSlowFusions().run(model, on)
    return [n.op_type for n in model.graph]


def test_an_add_before_a_layer_normalization() -> None:
    found = detoured(HEAD + "{ a = Add (x, r) y = LayerNormalization (a, s, b) z = Add (y, x) }")
    assert found == ["Sum", "LayerNormalization", "Add"]


@pytest.mark.parametrize(
    "text",
    [
        "{ a = Add (x, r) y = LayerNormalization (a, s, b) z = Relu (a) }",
        "{ z = Add (x, r) y = LayerNormalization (z, s, b) }",
        "{ a = Mul (x, r) y = LayerNormalization (a, s, b) z = Relu (y) }",
        "{ a = Add (x, r) y = Softmax (a) z = Relu (y) }",
    ],
    ids=["another reader", "a graph output", "another operator before", "another operator behind"],
)
def test_what_the_runtime_does_not_fuse_is_left_alone(text: str) -> None:
    assert "Sum" not in detoured(HEAD + text)


def test_the_runtime_fuses_one_and_not_the_other() -> None:
    """The evidence of the table's row; when it fails, the detour is no longer needed."""
    text = HEAD + "{ a = Add (x, r) y = LayerNormalization (a, s, b) z = Relu (y) }"
    with_detour = int8(text, WEIGHTS, [FEEDS])
    steps = find_recipe("int8-static")
    without = steps.model_copy(update={"steps": tuple(s for s in steps.steps if s.name != "detour-slow-fusions")})
    assert "SkipLayerNormalization" in int8(text, WEIGHTS, [FEEDS], recipe=without).kernels()
    assert "SkipLayerNormalization" not in with_detour.kernels()
    assert "LayerNormalization" in with_detour.kernels()
