"""The error of a block: every row has an equal say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qcompile.compiler.relative_error import relative_error


def error(exact: object, given: object) -> float:
    return relative_error([{"y": np.asarray(exact)}], [{"y": np.asarray(given)}], ["y"])


def test_a_row_with_massive_activations_does_not_hide_the_others() -> None:
    exact = np.array([[1e4, 0.0], [300.0, 400.0]])
    given = np.array([[1e4, 0.0], [330.0, 440.0]])
    assert error(exact, given) == pytest.approx(0.01 / 2)


def test_rows_that_are_all_but_zero_do_not_decide() -> None:
    exact = np.array([[1.0, 1.0], [1e-9, 0.0]])
    assert error(exact, exact + 1e-9) < 1e-6


def test_images_are_rows_of_their_own() -> None:
    exact = np.ones((2, 3, 4, 4))
    given = exact.copy()
    given[1] *= 1.1
    assert error(exact, given) == pytest.approx(0.01 / 2)


def test_infinite_masks_count_nothing_and_a_lost_value_counts_all() -> None:
    exact = np.array([[-np.inf, 1.0], [1.0, 1.0]])
    assert error(exact, exact) == 0
    assert error(np.ones((2, 2)), np.full((2, 2), np.nan)) == math.inf


@pytest.mark.parametrize("value", [np.zeros((0, 4)), np.float32(2.0), np.zeros((3, 4))])
def test_empty_scalar_and_zero(value: np.ndarray) -> None:
    assert error(value, value) == 0


def test_zero_that_became_something() -> None:
    assert error(np.zeros((1, 2)), np.ones((1, 2))) == math.inf
