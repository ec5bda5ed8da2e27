"""fuse-outliers: two products become one operator, which computes the same with its kernel and with its body."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

from qcompile.compiler.printer import print_model
from qcompile.compiler.targets import target_named
from qcompile.frontends.builtin_recipes import find_recipe
from tests.golden import assert_golden
from tests.operators.library import cpu_library, options_with
from tests.passes.int8 import CPU, Lowered, head, int8, normal

RECIPE = find_recipe("llm-int8").with_overrides(["precision.dtype=float32"])
APART = [p for p in RECIPE.passes() if p.name != "fuse-outliers"]
WEIGHTS = {"w": normal(16, 8), "b": normal(8), "v": normal(16, 8, seed=1), "u": normal(8, 8)}
BOTH = """g (float[S,16] x) => (float[S,8] y) {
    p = MatMul (x, w) a = Add (p, b) r = Relu (a) c = MatMul (x, v) d = Mul (r, c) e = Tanh (d) y = MatMul (e, u) }"""


def sample() -> list[dict[str, Any]]:
    """Columns 1 and 6 hold outliers; what the Tanh gives has none."""
    x = np.clip(normal(5, 16), -4, 4)
    x[:, [1, 6]] *= 20
    return [{"x": x}]


def lowered(text: str, fused: bool = True) -> Lowered:
    weights = {k: v for k, v in WEIGHTS.items() if f", {k}" in text}
    passes = RECIPE.passes() if fused else APART
    passes = [p for p in passes if p.name != "merge-linear"]
    return int8(head() + text, weights, sample(), target=target_named("cuda"), passes=passes)


def operators(done: Lowered) -> list[str]:
    return [n.op_type for n in done.model.graph if n.domain == "qcompile"]


def test_golden() -> None:
    apart, done = lowered(BOTH, fused=False), lowered(BOTH)
    text = f"# before\n{print_model(apart.model)}\n# after\n{print_model(done.model, provenance=True)}"
    assert_golden("passes/fuse-outliers", text)
    assert operators(done)[:2] == ["LinearOutliersW8A8BiasRelu", "LinearOutliersW8A8"]
    np.testing.assert_allclose(done.plain["y"], apart.plain["y"], rtol=1e-5, atol=1e-5)
    assert {key[1] for key in done.model.functions} == set(operators(done)), "no body without a call"


@pytest.mark.parametrize("activation", ["Relu (a)", "Gelu (a)", "Mul (a, s)", "Tanh (a)"])
def test_the_activation_behind_goes_in(activation: str) -> None:
    gate = "s = Sigmoid (a)" if "s)" in activation else ""
    text = f"g (float[S,16] x) => (float[S,8] y) {{ p = MatMul (x, w) a = Add (p, b) {gate} y = {activation} }}"
    text = text if "Gelu" not in activation else text.replace("g (", "g (", 1)
    done = int8(head(20) + text, {k: WEIGHTS[k] for k in "wb"}, sample(), recipe=RECIPE, target=target_named("cuda"))
    kinds = {"Relu (a)": "Relu", "Gelu (a)": "Gelu", "Mul (a, s)": "Silu", "Tanh (a)": ""}
    assert operators(done) == [f"LinearOutliersW8A8Bias{kinds[activation]}"]
    assert done.sqnr("y") > 35


@pytest.mark.parametrize(
    "text",
    [
        "g (float[S,16] x) => (float[S,8] y) { p = MatMul (x, w) z = Mul (x, x) o = MatMul (z, v) y = Add (p, o) }",
        "g (float[S,16] x) => (float[S,8] y, float[S,8] p) { p = MatMul (x, w) o = MatMul (x, v) y = Add (p, o) }",
    ],
)
def test_other_sums_stay(text: str) -> None:
    """Two layers that somebody adds are not the parts of one."""
    done, apart = lowered(text), lowered(text, fused=False)
    assert operators(done).count("LinearOutliersW8A8") == operators(apart).count("LinearW8A8")
    np.testing.assert_allclose(done.plain["y"], apart.plain["y"], rtol=1e-5, atol=1e-5)


def test_the_kernel_gives_what_the_body_gives() -> None:
    done = lowered(BOTH)
    kernel, body = (
        onnxruntime.InferenceSession(done.data, options_with(path), providers=[CPU]).run(None, sample()[0])[0]
        for path in (cpu_library(), None)
    )
    np.testing.assert_allclose(kernel, body, rtol=1e-4, atol=1e-4)
