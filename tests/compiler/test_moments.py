from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from qcompile.compiler.moments import Moments, propagated
from qcompile.passes.prepare.fold_batch_norm import FoldBatchNorm
from tests.passes.harness import NAMED, Arrays, context, model_of, run

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def of(mean: float, deviation: float) -> Moments:
    return Moments(np.array([mean]), np.array([deviation]))


@settings(max_examples=60, deadline=None)
@given(
    mean=st.floats(-5, 5),
    deviation=st.floats(0.05, 4),
    low=st.one_of(st.just(-math.inf), st.floats(-3, 0)),
    high=st.one_of(st.just(math.inf), st.floats(0.5, 6)),
)
def test_moments_of_a_clipped_normal_equal_the_integrals(
    mean: float, deviation: float, low: float, high: float
) -> None:
    def integral(power: int) -> float:
        a, b = (v if math.isfinite(v) else mean + sign * 12 * deviation for v, sign in ((low, -1), (high, 1)))
        normal = stats.norm(mean, deviation)
        start, end = max(a, mean - 12 * deviation), min(b, mean + 12 * deviation)
        inside = integrate.quad(lambda x: x**power * normal.pdf(x), start, max(start, end), limit=200)[0]
        return float(inside + a**power * normal.cdf(a) + b**power * normal.sf(b))

    clipped = of(mean, deviation).clipped(low, high)
    assert clipped is not None
    assert clipped.deviation is not None
    first, second = integral(1), integral(2)
    assert clipped.mean[0] == pytest.approx(first, abs=1e-6)
    assert clipped.deviation[0] == pytest.approx(math.sqrt(max(second - first**2, 0)), abs=1e-4)


def test_a_relu_has_the_closed_form_of_the_paper() -> None:
    beta, gamma = np.array([-1.0, 0.0, 2.0]), np.array([0.5, 1.0, 3.0])
    expected = gamma * stats.norm.pdf(-beta / gamma) + beta * (1 - stats.norm.cdf(-beta / gamma))
    relu = Moments(beta, gamma).clipped(0, math.inf)
    assert relu is not None
    np.testing.assert_allclose(relu.mean, expected, rtol=1e-12)


def test_a_channel_without_deviation_is_a_constant() -> None:
    clipped = Moments(np.array([-1.0, 3.0, 9.0]), np.zeros(3)).clipped(0, 6)
    assert clipped is not None
    assert clipped.deviation is not None
    np.testing.assert_allclose(clipped.mean, [0, 3, 6], atol=1e-9)
    np.testing.assert_allclose(clipped.deviation, 0, atol=1e-6)


def test_moments_follow_the_graph_and_stop_where_nothing_is_known() -> None:
    model = model_of(
        f"""{HEAD} g (float[N,2,4,4] a, float[N,2,4,4] b, float[N,2,4,4] other) => (float[N,4] y, float[N,2,4,4] z) {{
          s = Add (a, b) r = Relu (s) t = Add (shift, r) c = Concat <axis = 1> (t, a) p = GlobalAveragePool (c)
          y = Flatten (p) u = Add (a, other) z = Relu (u) }}""",
        {"shift": np.array([[[[1.0]], [[2.0]]]], np.float32)},
    )
    run(model, *NAMED)
    rng = np.random.default_rng(0)
    recorded = {name: Moments(rng.normal(size=2), np.abs(rng.normal(size=2))) for name in "ab"}
    found = propagated(model.graph, recorded)
    drawn = {
        n: rng.normal(m.mean[:, None], m.deviation[:, None], (2, 400_000))  # type: ignore[index]
        for n, m in recorded.items()
    }
    relu = np.maximum(drawn["a"] + drawn["b"], 0)
    np.testing.assert_allclose(found["r"].mean, relu.mean(axis=1), atol=0.01)
    np.testing.assert_allclose(found["r"].deviation, relu.std(axis=1), atol=0.01)  # type: ignore[arg-type]
    np.testing.assert_allclose(found["y"].mean, np.append(found["r"].mean + np.array([1, 2]), recorded["a"].mean))
    assert found["y"].deviation is None
    assert "u" not in found
    assert "z" not in found


def norm(channels: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    drawn: Any = rng.standard_normal((4, channels)).astype(np.float32)
    return dict(zip(("g", "o", "m", "v"), (*drawn[:3], np.abs(drawn[3]) + np.float32(0.1)), strict=True))


def test_fold_batch_norm_records_what_it_folds() -> None:
    weights = norm(4, 1) | {
        "w": np.random.default_rng(2).standard_normal((4, 3, 1, 1)).astype(np.float32),
        "twice": np.float32(-2),
        "half": np.float32(0.5),
    }
    model = model_of(
        f"""{HEAD} g (float[N,3,6,6] x) => (float[N,4,6,6] y, float[N,4,6,6] z) {{
          c = Conv (x, w) n = BatchNormalization (c, g, o, m, v) s = Mul (n, twice) y = Add (s, half)
          r = Relu (y) z = BatchNormalization (r, g, o, m, v) }}""",
        weights,
    )
    on = context()
    run(model, *NAMED, FoldBatchNorm(), on=on)
    spread = np.abs(weights["g"]) * np.sqrt(weights["v"] / (weights["v"] + 1e-5))
    np.testing.assert_allclose(on.moments["y"].mean, -2 * weights["o"] + 0.5, rtol=1e-6)
    np.testing.assert_allclose(on.moments["y"].deviation, 2 * spread, rtol=1e-6)  # type: ignore[arg-type]
    np.testing.assert_allclose(on.moments["z"].mean, weights["o"], rtol=1e-6)
