"""Rounding with error feedback against the paper's own recursion, closed forms and a search of all codes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.gram import Gram
from qcompile.passes.quantize.error_feedback import BLOCK, Feedback, Nearest, feedback, rounded
from tests.passes.int8 import Array, normal

LOW, HIGH = -8, 7


def on_grid(scale: Array, low: int = LOW, high: int = HIGH) -> Nearest:
    """Integers of one scale for each output, [groups, N]."""

    def nearest(_: int, values: Array) -> tuple[Array, Array]:
        codes = np.clip(np.rint(values / scale), low, high)
        return codes, (codes * scale).astype(np.float32)

    return nearest


def correlated(rows: int, size: int, seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((size, size)) * np.exp(-np.arange(size) / (size / 3))
    found: Array = (random.standard_normal((rows, size)) @ mixing.T + 0.3).astype(np.float32)
    return found


def solve(weight: Array, back: Feedback, nearest: Nearest, block: int = BLOCK) -> Array:
    """Codes [N, K], in the order of the model, of a layer of one group; `weight` [N, K]."""
    inputs = np.ascontiguousarray(weight.T[None][:, back.order[0]])
    codes = np.zeros(inputs.shape, np.int32)
    rounded(inputs, back, nearest, codes, block)
    found = np.empty_like(codes[0])
    found[back.order[0]] = codes[0]
    return found.T


def loss(h: Array, weight: Array, values: Array) -> float:
    d = (weight - values).astype(np.float64)
    return float(np.trace(d @ h @ d.T))


def damped(x: Array, damping: float) -> npt.NDArray[np.float64]:
    h = x.astype(np.float64).T @ x.astype(np.float64)
    return h + damping * np.diag(h).mean() * np.eye(len(h))


def paper(weight: Array, h: Array, scale: Array, act_order: bool, difference: Array | None = None) -> Array:
    """The recursion as it is printed: U of the inverse, the rest of the row corrected after each column."""
    order = np.argsort(-np.diag(h), kind="stable") if act_order else np.arange(len(h))
    w, h = weight[:, order].astype(np.float64), h[np.ix_(order, order)]
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    p = np.zeros_like(h)
    if difference is not None:
        p = np.triu(difference[np.ix_(order, order)] @ u.T, 1) @ u
    codes = np.zeros(w.shape)
    for i in range(len(h)):
        now = w[:, i].copy()
        codes[:, order[i]] = np.clip(np.rint(now / scale), LOW, HIGH)
        e = (now - codes[:, order[i]] * scale) / u[i, i]
        w[:, i:] += now[:, None] * p[i, i:] - e[:, None] * u[i, i:]
    return codes


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("size", [1, 5, 127, 128, 300])
def test_it_is_the_recursion_of_the_paper(size: int, act_order: bool) -> None:
    """Columns fewer than a block, a block, and blocks with a rest."""
    x, weight = correlated(600, size), normal(24, size)
    scale = (np.abs(weight).max(1) / HIGH).astype(np.float32)
    back = feedback(Gram.of(x[None]).matrix, 0.01, act_order=act_order)
    found, expected = (
        solve(weight, back, on_grid(scale[None])),
        paper(weight, damped(x, 0.01), scale, act_order),
    )
    np.testing.assert_allclose(found * scale[:, None], expected * scale[:, None], atol=1e-5)
    if size > 1:
        assert (np.diff(np.diag(damped(x, 0))[back.order[0]]) <= 0).all() == act_order


@pytest.mark.parametrize("size", [40, 200])
def test_the_asymmetric_term_is_that_of_the_paper(size: int) -> None:
    given_, weight = correlated(500, size), normal(16, size)
    difference = (0.05 * correlated(500, size, seed=1)).astype(np.float32)
    scale = (np.abs(weight).max(1) / HIGH).astype(np.float32)
    cross = difference.T @ given_
    back = feedback(Gram.of(given_[None]).matrix, 0.01, difference=cross[None])
    found = solve(weight, back, on_grid(scale[None]))
    expected = paper(weight, damped(given_, 0.01), scale, act_order=True, difference=cross.astype(np.float64))
    np.testing.assert_allclose(found * scale[:, None], expected * scale[:, None], atol=1e-5)
    none = feedback(Gram.of(given_[None]).matrix, 0.01, difference=np.zeros_like(cross)[None])
    plain = feedback(Gram.of(given_[None]).matrix, 0.01)
    np.testing.assert_array_equal(solve(weight, none, on_grid(scale[None])), solve(weight, plain, on_grid(scale[None])))

    def missed(codes: Array) -> float:
        return float(np.square(given_ @ (codes * scale[:, None]).T - (given_ + difference) @ weight.T).sum())

    assert missed(found) < missed(solve(weight, plain, on_grid(scale[None])))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**31), st.booleans(), st.integers(1, 50))
def test_the_loss_is_the_sum_of_squared_errors(size: int, outputs: int, seed: int, act_order: bool, rows: int) -> None:
    """tr dW H dW^T = sum e^2, and without clipping at most sum s^2/4 * sum R_jj^2, with 1/U_jj = R_jj."""
    x, weight = correlated(rows, size, seed), normal(outputs, size, seed=seed)
    scale = (np.abs(weight).max(1) / HIGH + 1e-3).astype(np.float32)
    back = feedback(Gram.of(x[None]).matrix, 0.01, act_order=act_order)
    codes = solve(weight, back, on_grid(scale[None], -(2**20), 2**20))
    values = codes * scale[:, None].astype(np.float64)
    h = damped(x, 0.01)
    found, bound = loss(h, weight, values), np.sum(np.square(scale.astype(np.float64))) / 4 * np.sum(back.diagonal**2)
    upper = np.linalg.cholesky(h[np.ix_(back.order[0], back.order[0])][::-1, ::-1])[::-1, ::-1]
    errors = (weight - values)[:, back.order[0]] @ upper
    np.testing.assert_allclose(found, np.square(errors).sum(), rtol=1e-6)
    assert found <= bound * (1 + 1e-3)
    assert np.abs(errors / upper.diagonal() / scale[:, None]).max() <= 0.5 + 1e-3, "every code is the nearest one"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**31), st.booleans())
def test_inputs_that_know_nothing_of_each_other_leave_the_nearest_codes(size: int, seed: int, order: bool) -> None:
    weight = normal(6, size, seed=seed)
    gram = np.diag(np.random.default_rng(seed).uniform(0, 9, size)).astype(np.float32)
    scale = (np.abs(weight).max(1) / HIGH).astype(np.float32)
    codes = solve(weight, feedback(gram[None], 0.01, act_order=order), on_grid(scale[None]))
    np.testing.assert_array_equal(codes, np.clip(np.rint(weight / scale[:, None]), LOW, HIGH))


def test_little_is_left_to_a_search_of_all_codes() -> None:
    """Six weights of two bits: 4096 ways to round them."""
    x, weight = correlated(200, 6), normal(12, 6)
    h, scale = damped(x, 0.01), (np.abs(weight).max(1) / 2).astype(np.float32)
    every = np.array(list(itertools.product(range(-2, 2), repeat=6)))
    codes = solve(weight, feedback(Gram.of(x[None]).matrix, 0.01), on_grid(scale[None], -2, 1))
    nearest = np.clip(np.rint(weight / scale[:, None]), -2, 1)
    best = sum(min(loss(h, weight[[n]], (c * scale[n])[None]) for c in every) for n in range(12))
    found, simple = (loss(h, weight, c * scale[:, None]) for c in (codes, nearest))
    assert best <= found < 1.6 * best
    assert found < 0.5 * simple


def test_groups_are_layers_of_their_own() -> None:
    x, weight = np.stack([correlated(90, 20, seed=s) for s in range(3)]), normal(3, 20, 4)
    scale = (np.abs(weight).max(1) / HIGH).astype(np.float32)
    back = feedback(Gram.of(x).matrix, 0.01)
    inputs = np.take_along_axis(weight, back.order[:, :, None], 1)
    codes = np.zeros(inputs.shape, np.int32)
    rounded(inputs, back, on_grid(scale), codes)
    for g in range(3):
        alone = solve(weight[g].T, feedback(Gram.of(x[g : g + 1]).matrix, 0.01), on_grid(scale[g : g + 1]))
        np.testing.assert_array_equal(codes[g].T, alone[:, back.order[g]])


def test_rows_can_be_streamed() -> None:
    x = correlated(64, 8)[None]
    whole, parts = Gram.of(x), Gram.of(x[:, :10])
    parts.merge(Gram.of(x[:, 10:]))
    np.testing.assert_allclose(parts.matrix, whole.matrix, rtol=1e-5)
    assert parts.rows == whole.rows == 64


class TestOddMatrices:
    def test_inputs_that_are_always_zero_keep_their_nearest_codes(self) -> None:
        x, weight = correlated(100, 12), normal(5, 12)
        x[:, [0, 7]] = 0
        scale = (np.abs(weight).max(1) / HIGH).astype(np.float32)
        back = feedback(Gram.of(x[None]).matrix, 0.01)
        codes = solve(weight, back, on_grid(scale[None]))
        np.testing.assert_array_equal(codes[:, [0, 7]], np.rint(weight / scale[:, None])[:, [0, 7]])
        rest = np.delete(np.arange(12), [0, 7])
        h = Gram.of(x[None, :, rest]).matrix * 1.0
        h[0][np.diag_indices(10)] += 0.01 * np.diag(Gram.of(x[None]).matrix[0]).mean()
        alone = solve(weight[:, rest], feedback(h, 1e-12), on_grid(scale[None]))
        np.testing.assert_array_equal(codes[:, rest], alone)

    def test_nothing_but_zeros(self) -> None:
        weight = normal(5, 12)
        scale = (np.abs(weight).max(1) / HIGH).astype(np.float32)
        codes = solve(weight, feedback(np.zeros((1, 12, 12), np.float32), 0.01), on_grid(scale[None]))
        np.testing.assert_array_equal(codes, np.clip(np.rint(weight / scale[:, None]), LOW, HIGH))

    def test_fewer_rows_than_inputs(self) -> None:
        x = correlated(3, 50)
        back = feedback(Gram.of(x[None]).matrix, 0.01)
        assert back.damping == 0.01
        assert np.isfinite(back.errors).all()

    def test_a_matrix_that_is_not_definite_gets_more_damping(self) -> None:
        gram: Any = correlated(100, 12).T @ correlated(100, 12)
        gram[0, 0] -= 0.5 * np.linalg.eigvalsh(gram)[-1]
        back = feedback(gram[None], 1e-6)
        assert 1e-6 < back.damping < 100
        assert np.isfinite(back.errors).all()


def test_torch_computes_the_same() -> None:
    import torch

    x, weight = correlated(300, 140)[None], normal(1, 140, 12)
    cross = (0.1 * correlated(300, 140, seed=1)).T[None] @ x
    scale = (np.abs(weight).max(1) / HIGH).astype(np.float32)

    def tensor_grid(_: int, values: Any) -> tuple[Any, Any]:
        codes = torch.clip(torch.round(values / torch.from_numpy(scale)), LOW, HIGH)
        return codes, codes * torch.from_numpy(scale)

    found = []
    for put, nearest in ((np.asarray, on_grid(scale)), (torch.from_numpy, tensor_grid)):
        back = feedback(Gram.of(put(x)).matrix, 0.01, difference=put(cross), alpha=0.5)
        codes = put(np.empty_like(weight))
        rounded(put(np.take_along_axis(weight, np.asarray(back.order)[:, :, None], 1)), back, nearest, codes)
        found.append(np.asarray(codes))
    np.testing.assert_array_equal(found[0], found[1])


def test_torch_raises_damping_too() -> None:
    import torch

    gram = correlated(100, 12).T @ correlated(100, 12)
    gram[0, 0] -= 0.5 * np.linalg.eigvalsh(gram)[-1]
    assert feedback(torch.from_numpy(gram[None]), 1e-6).damping == feedback(gram[None], 1e-6).damping
