"""Importance against what happens when a channel really goes."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.compiler.gram import Gram
from qcompile.passes.transform.pruning.first_order import Place, first_order
from qcompile.passes.transform.pruning.importance import fluctuation, magnitude
from tests.passes.harness import model_of


def test_fluctuation_is_the_variance_that_is_lost() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 300, 6)) @ rng.standard_normal((6, 6)) + rng.standard_normal(6)
    weight, channels = rng.standard_normal((1, 4, 6)), np.array([0, 0, 1, 2, 2, -1])
    found = fluctuation(weight, Gram.of(x.astype(np.float32)).centred().matrix, channels, 3)
    y = x[0] @ weight[0].T
    for channel in range(3):
        without = x[0].copy()
        without[:, channels == channel] = x[0].mean(axis=0)[channels == channel]
        lost = np.square(y - without @ weight[0].T).sum() / np.square(y - y.mean(axis=0)).sum()
        assert found[channel] == pytest.approx(lost, rel=1e-4)


def test_a_constant_channel_is_worth_nothing_however_large() -> None:
    x = np.random.default_rng(0).standard_normal((1, 50, 2)).astype(np.float32)
    x[:, :, 1] = 40
    found = fluctuation(np.ones((1, 3, 2)), Gram.of(x).centred().matrix, np.arange(2), 2)
    assert found == pytest.approx([1, 0], abs=1e-5)


def test_magnitude_is_the_mean_square_of_all_weights() -> None:
    writes, reads = np.array([[1.0, 2], [3, 4], [5, 6]]), np.array([[1.0], [0], [2], [7]])
    found = magnitude([(writes, np.array([0, 1, 1])), (reads, np.array([1, 0, 0, -1]))], 2)
    assert found == pytest.approx([(1 + 4 + 0 + 4) / 4, (9 + 16 + 25 + 36 + 1) / 5])


@pytest.mark.usefixtures("one_thread")
def test_first_order_is_exact_where_answers_are_linear() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((5, 3)).astype(np.float32)
    text = (
        '<ir_version: 10, opset_import: ["": 20]> g (float[N, 5] x) => (float[N, 3] y) { h = Abs(x) y = MatMul(h, w) }'
    )
    samples = [{"x": rng.standard_normal((1, 5)).astype(np.float32)} for _ in range(400)]
    channels = np.array([0, 1, 1, 2, -1])
    [found] = first_order(model_of(text, {"w": weight}), [Place("h", 1, 0, channels)], [3], samples, 0, "cpu")
    h = np.abs(np.concatenate([s["x"] for s in samples]))
    y, moved = h @ weight, h - h.mean(axis=0)
    for channel in range(3):
        at = channels == channel
        exact = np.square(moved[:, at] @ weight[at]).sum() / np.square(y).sum()
        assert found[channel] == pytest.approx(exact, rel=0.15)  # drawn directions
