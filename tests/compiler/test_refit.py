"""Refitting against numpy's least squares on the rows themselves."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from qcompile.compiler.gram import Gram
from qcompile.compiler.refit import in_span, on_columns, on_positions, relative_error, summary

Floats = npt.NDArray[np.float32]

GROUPS, OUTPUTS, INPUTS, ROWS = 2, 5, 12, 400


def normal(*shape: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rows(seed: int = 0) -> Floats:
    """Inputs that depend on each other, [groups, rows, K]."""
    return (normal(GROUPS, ROWS, INPUTS, seed=seed) @ normal(GROUPS, INPUTS, INPUTS, seed=9)).astype(np.float32)


WEIGHT = normal(GROUPS, OUTPUTS, INPUTS, seed=1)
X = rows()
FLOAT = (X + 0.3 * rows(seed=5)).astype(np.float32)
"""What the unedited model reads."""


def grams() -> list[tuple[Gram, Floats]]:
    return [(Gram.of(X), X), (Gram.of(X, FLOAT), FLOAT)]


def lost(edited: Floats, exact: Floats) -> float:
    y = exact.astype(np.float64) @ WEIGHT.swapaxes(1, 2)
    return float(np.square(X @ edited.swapaxes(1, 2) - y).sum() / np.square(y).sum())


@pytest.mark.parametrize("case", [0, 1])
def test_the_error_is_that_of_the_rows(case: int) -> None:
    gram, exact = grams()[case]
    edited = WEIGHT + normal(*WEIGHT.shape, seed=3) / 4
    assert relative_error(WEIGHT, edited, gram) == pytest.approx(lost(edited, exact), rel=1e-4)
    assert relative_error(WEIGHT, WEIGHT, grams()[0][0]) == 0


@pytest.mark.parametrize("case", [0, 1])
def test_columns_are_those_of_least_squares(case: int) -> None:
    gram, exact = grams()[case]
    columns = np.array([[0, 2, 3, 7, 11], [1, 2, 4, 8, 9]])
    found = on_columns(WEIGHT, gram, columns, damping=0)
    for g in range(GROUPS):
        best = np.linalg.lstsq(X[g][:, columns[g]], exact[g] @ WEIGHT[g].T)[0].T
        np.testing.assert_allclose(found[g], best, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("case", [0, 1])
def test_a_span_is_that_of_least_squares(case: int) -> None:
    gram, exact = grams()[case]
    basis = normal(GROUPS, 3, INPUTS, seed=7)
    found = in_span(WEIGHT, gram, basis, damping=0)
    for g in range(GROUPS):
        best = np.linalg.lstsq(X[g] @ basis[g].T, exact[g] @ WEIGHT[g].T)[0].T
        np.testing.assert_allclose(found[g], best, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("case", [0, 1])
def test_masks_reach_the_least_squares_of_each_row(case: int) -> None:
    gram, exact = grams()[case]
    mask = normal(*WEIGHT.shape, seed=2) > 0
    mask[0, 0] = False
    found = on_positions(WEIGHT, gram, mask, WEIGHT, damping=0, steps=60)
    assert not found[~mask].any()
    for g in range(GROUPS):
        for n in range(OUTPUTS):
            keep = mask[g, n]
            best = np.linalg.lstsq(X[g][:, keep], exact[g] @ WEIGHT[g, n])[0]
            np.testing.assert_allclose(found[g, n, keep], best, rtol=5e-3, atol=5e-3)


def test_every_step_helps() -> None:
    gram = Gram.of(X)
    mask = normal(*WEIGHT.shape, seed=2) > 0
    errors = [
        relative_error(WEIGHT, on_positions(WEIGHT, gram, mask, WEIGHT, damping=0, steps=n), gram) for n in range(8)
    ]
    assert all(b < a for a, b in pairwise(errors))
    assert errors[0] == pytest.approx(relative_error(WEIGHT, WEIGHT * mask, gram))


def test_inputs_that_are_silent_leave_weights_alone() -> None:
    """Without a word from the samples about some inputs, or about any."""
    x = X.copy()
    x[..., :4] = 0
    mask = np.ones(WEIGHT.shape, np.bool_)
    mask[..., 6] = False
    for gram in (Gram.of(x), Gram.of(np.zeros_like(x))):
        found = on_positions(WEIGHT, gram, mask, WEIGHT)
        np.testing.assert_allclose(found[..., :4], WEIGHT[..., :4], rtol=1e-5)
        columns = np.tile([0, 1, 2, 3, 8], (GROUPS, 1))
        np.testing.assert_allclose(on_columns(WEIGHT, gram, columns)[..., :4], WEIGHT[..., :4], rtol=1e-3)


def test_merged_grams_are_those_of_all_rows() -> None:
    whole, parts = Gram.of(X, FLOAT), Gram.of(X[:, :100], FLOAT[:, :100])
    parts.merge(Gram.of(X[:, 100:], FLOAT[:, 100:]))
    np.testing.assert_allclose(parts.matrix, whole.matrix, rtol=1e-4, atol=1e-2)
    assert parts.drift is not None
    assert whole.drift is not None
    for a, b in zip(parts.drift, whole.drift, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-2)


def test_the_summary_names_the_worst() -> None:
    text = summary("wanda", {"a": (0.1, 0.05), "b": (0.4, 0.2), "c": (0.2, 0.1)})
    assert "3 layers" in text
    assert "from 20.00% to 10.00%" in text
    assert "b: 40.00% to 20.00%" in text


def test_few_rows_say_little_beyond_themselves() -> None:
    """Left to itself the damping grows as rows get fewer, to the gain of other rows of the same kind."""
    few, other, mask = X[:, :14], Gram.of(rows(seed=8)), normal(*WEIGHT.shape, seed=2) > 0
    errors = [
        relative_error(WEIGHT, on_positions(WEIGHT, Gram.of(few), mask, WEIGHT, damping, steps=60), other)
        for damping in (1e-4, None)
    ]
    assert errors[1] < 0.8 * errors[0]
    basis = normal(GROUPS, 8, INPUTS, seed=7)
    spans = [in_span(WEIGHT, Gram.of(X[:, :10], FLOAT[:, :10]), basis, damping) for damping in (1e-4, None)]
    errors = [relative_error(WEIGHT, span @ basis, Gram.of(X[:, 100:], FLOAT[:, 100:])) for span in spans]
    assert errors[1] < 0.8 * errors[0]
