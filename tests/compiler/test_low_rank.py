"""The nearest matrix of a rank: against the singular value decomposition, in the metric of the inputs, and on torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.gram import Gram
from qcompile.compiler.low_rank import decomposed

SHAPES = [(12, 20), (20, 12), (16, 16)]


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def correlated(groups: int, rows: int, inputs: int, seed: int = 1) -> np.ndarray[Any, Any]:
    """Inputs that lie close to few directions, some of them large."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((groups, rows, inputs)) @ rng.standard_normal((groups, inputs, inputs))
    return (mixed * rng.uniform(0.1, 10, inputs)).astype(np.float32)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_without_a_metric_it_is_the_singular_value_decomposition(outputs: int, inputs: int) -> None:
    w = normal(2, outputs, inputs)
    found = decomposed(w)
    for group in range(2):
        u, sigma, v = np.linalg.svd(w[group].astype(np.float64), full_matrices=False)
        np.testing.assert_allclose(found.energies[group], sigma**2, rtol=1e-9, atol=1e-9)
        z = found.truncated(5).product[group]
        np.testing.assert_allclose(z, (u[:, :5] * sigma[:5]) @ v[:5], atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(shape=st.sampled_from(SHAPES), rank=st.integers(0, 12), seed=st.integers(0, 99))
def test_the_error_of_the_outputs_is_the_sum_of_what_is_discarded(shape: tuple[int, int], rank: int, seed: int) -> None:
    """||(W - Z) X||^2 = sum of sigma_i^2 beyond the rank, to 1e-6."""
    w, x = normal(2, *shape, seed=seed), correlated(2, 64, shape[1], seed).astype(np.float64)
    found = decomposed(w, Gram.of(x).matrix)
    missed = (w - found.truncated(rank).product) @ x.swapaxes(1, 2)
    lost = np.square(missed).sum()
    np.testing.assert_allclose(found.errors()[rank], lost, rtol=1e-6, atol=1e-6 * found.errors()[0])
    other = decomposed(w).truncated(rank).product
    measured = decomposed(w).errors(Gram.of(x).matrix)[rank]
    np.testing.assert_allclose(measured, np.square((w - other) @ x.swapaxes(1, 2)).sum(), rtol=1e-6, atol=1e-6 * lost)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_no_other_matrix_of_the_rank_is_nearer(outputs: int, inputs: int) -> None:
    """Not the plain truncation, not one scaled by the inputs, none beside it."""
    w, x = normal(1, outputs, inputs), correlated(1, 64, inputs)
    best = decomposed(w, Gram.of(x).matrix)
    scale = np.sqrt(np.square(x).mean(1))[0]
    others = [decomposed(w).truncated(4).product, decomposed(w * scale).truncated(4).product / scale]
    moved = best.truncated(4)
    others.append((moved.left + 1e-2 * normal(1, outputs, 4)) @ moved.right)
    errors = [np.square((w - z) @ x.swapaxes(1, 2)).sum() for z in others]
    assert min(errors) > best.errors()[4]


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_full_rank_is_the_weight(outputs: int, inputs: int) -> None:
    w = normal(2, outputs, inputs)
    found = decomposed(w, Gram.of(correlated(2, 64, inputs)).matrix).truncated(min(outputs, inputs))
    np.testing.assert_allclose(found.product, w, atol=1e-9)
    np.testing.assert_allclose(found.left.swapaxes(1, 2) @ found.left, np.stack([np.eye(found.rank)] * 2), atol=1e-9)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_a_weight_of_low_rank_loses_nothing(outputs: int, inputs: int) -> None:
    w = normal(1, outputs, 3) @ normal(1, 3, inputs)
    found = decomposed(w)
    np.testing.assert_allclose(found.truncated(3).product, w, atol=1e-5)
    assert found.errors()[3] < 1e-10 * found.errors()[0]


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_torch_gives_the_same(outputs: int, inputs: int) -> None:
    import torch

    w, metric = normal(1, outputs, inputs), Gram.of(correlated(1, 64, inputs)).matrix
    ours, theirs = decomposed(w, metric), decomposed(torch.from_numpy(w), torch.from_numpy(metric))
    np.testing.assert_allclose(theirs.errors().numpy(), ours.errors(), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(theirs.truncated(4).product.numpy(), ours.truncated(4).product, atol=1e-9)
