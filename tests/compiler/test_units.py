"""Which nodes belong together, and which can gain from codes at all."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.compiler.targets import target_named
from qcompile.compiler.units import Candidate, candidates, within_reach
from tests.passes.harness import NAMED, model_of, run
from tests.passes.int8 import Array, head, normal

CPU = target_named("cpu")
IMAGES = head() + "g (float[1,8,6,6] x) => (float[1,8,6,6] y) "
WEIGHTS = {"w": normal(8, 8, 1, 1), "v": normal(8, 8, 1, 1, seed=1)}


def found(text: str, weights: dict[str, Array]) -> list[Candidate]:
    model = model_of(text, weights)
    run(model, *NAMED)
    return candidates(model.graph, CPU)


def absorbed(text: str, **weights: Array) -> str | None:
    first = found(text, WEIGHTS | weights)[0]
    return str(first.activation.name) if first.activation is not None else None


@pytest.mark.parametrize(
    ("low", "high", "belongs"),
    [(0, 6, True), (-1, 1, True), (-1, 0, True), (0.1, 6, False), (-6, -0.1, False), (None, 6, True), (0, None, True)],
)
def test_a_clip_belongs_when_zero_lies_in_it(low: float | None, high: float | None, belongs: bool) -> None:
    bounds = {k: np.float32(v) for k, v in (("lo", low), ("hi", high)) if v is not None}
    inputs = "c, lo, hi" if len(bounds) == 2 else "c, lo" if low is not None else "c, , hi"
    text = IMAGES + "{ c = Conv (x, w) y = Clip (" + inputs + ") }"
    assert absorbed(text, **bounds) == ("Clip_1" if belongs else None)


def test_a_clip_whose_bound_is_computed_stays_apart() -> None:
    text = head() + "g (float[1,8,6,6] x, float hi) => (float[1,8,6,6] y) { c = Conv (x, w) y = Clip (c, , hi) }"
    assert absorbed(text) is None


@pytest.mark.parametrize("made", ["Conv (x, w)", "Add (x, x)"])
def test_a_relu_belongs_to_what_writes_for_it_alone(made: str) -> None:
    assert absorbed(IMAGES + "{ c = " + made + " y = Relu (c) }") == "Relu_1"


@pytest.mark.parametrize(
    "text",
    [
        "g (float[1,8,6,6] x) => (float[1,8,6,6] y, float[1,8,6,6] c) { c = Conv (x, w) y = Relu (c) }",
        "g (float[1,8,6,6] x) => (float[1,8,6,6] y) { c = Conv (x, w) r = Relu (c) y = Mul (r, c) }",
        "g (float[1,8,6,6] x, bool t) => (float[1,8,6,6] y) { c = Conv (x, w) y = If (t) <"
        " then_branch = a () => (float[1,8,6,6] p) { p = Relu (c) },"
        " else_branch = b () => (float[1,8,6,6] q) { q = Neg (x) } > }",
    ],
    ids=["the convolution is an output", "another reader", "in a branch"],
)
def test_a_relu_that_is_not_the_only_reader_stays_apart(text: str) -> None:
    assert absorbed(head() + text) is None


def test_mul_absorbs_nothing() -> None:
    assert absorbed(IMAGES + "{ c = Mul (x, x) y = Relu (c) }") is None


def outputs_of(chosen: list[Candidate]) -> list[str]:
    return [str(c.output.name) for c in chosen]


def reach(text: str, weights: dict[str, Array] = WEIGHTS) -> list[str]:
    return outputs_of(within_reach([c for c in found(text, weights) if not c.obstacle]))


def test_a_chain_behind_codes_is_within_reach() -> None:
    text = IMAGES + "{ a = Exp (x) c = Conv (a, w) s = Add (c, x) m = Mul (s, s) t = Tanh (m) y = Mul (t, t) }"
    assert reach(text) == ["c", "s", "m"], "not what only floats surround"


def test_conversions_move_up_through_what_only_moves_values() -> None:
    text = (
        head()
        + """g (float[1,6,8,6] x) => (float[1,8,6,6] y) {
      t = Transpose <perm = [0, 2, 1, 3]> (x) r = Sigmoid (t) a = Slice (r, zeros, sixes) y = Conv (a, w) }"""
    )
    weights = WEIGHTS | {"zeros": np.int64([0, 0]), "sixes": np.int64([9, 9])}
    assert reach(text, weights) == ["a", "y"], "a Sigmoid on codes would round once more"
    assert reach(text.replace("Sigmoid (t)", "Transpose <perm = [0, 1, 3, 2]> (t)"), weights) == ["t", "r", "a", "y"]


def test_products_of_activations_are_within_reach() -> None:
    text = head() + "g (float[2,6,6] x) => (float[2,6,6] y) { h = MatMul (x, x) y = Softmax (h) }"
    assert reach(text, {}) == ["h"]


OBSTACLES = {
    "its weight is not a constant": head() + "g (float[6,6] x, float[6,6] u) => (float[6,6] y) { y = Gemm (x, u) }",
    "its bias is not a constant": head() + "g (float[6,16] x, float[8] u) => (float[6,8] y) { y = Gemm (x, m, u) }",
    "an int8 Gemm needs alpha = beta = 1 and transA = 0": head()
    + "g (float[6,16] x) => (float[6,8] y) { y = Gemm <alpha = 2.0> (x, m) }",
    "QLinearConv takes 1-D and 2-D convolutions": head()
    + "g (float[1,8,6,6,6] x) => (float[1,4,6,6,6] y) { y = Conv (x, n) }",
    "its data is not float32": head() + "g (float16[6] x) => (float16[6] y) { y = Add (x, x) }",
    "it does not compute in float32": head() + "g (double[6,16] x) => (double[6,8] y) { y = Gemm (x, d) }",
    "its inputs are constants": head() + "g (float[16,8] x) => (float[16,8] y) { k = Add (m, m) y = Tanh (k) }",
}


@pytest.mark.parametrize("reason", OBSTACLES)
def test_obstacles_have_reasons(reason: str) -> None:
    weights = {"m": normal(16, 8), "n": normal(4, 8, 1, 1, 1), "d": normal(16, 8).astype(np.float64)}
    used = {k: v for k, v in weights.items() if f" {k})" in OBSTACLES[reason] or f", {k}" in OBSTACLES[reason]}
    [candidate] = found(OBSTACLES[reason], used)
    assert candidate.obstacle == reason
