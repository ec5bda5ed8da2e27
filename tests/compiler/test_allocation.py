"""Spending a budget over layers: against every possible choice, and what cannot be met."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.allocation import Option, allocate
from qcompile.errors import RecipeError

LAYERS = st.lists(
    st.lists(st.builds(Option, st.integers(1, 9), st.floats(0, 1)), min_size=1, max_size=4), min_size=1, max_size=4
)


def spent(layers: list[list[Option]], chosen: list[int]) -> tuple[float, float]:
    taken = [options[i] for options, i in zip(layers, chosen, strict=True)]
    return sum(o.cost for o in taken), sum(o.error for o in taken)


@settings(max_examples=60, deadline=None)
@given(layers=LAYERS, more=st.integers(0, 20))
def test_against_all_choices(layers: list[list[Option]], more: int) -> None:
    """Within the budget, and no choice that costs as little is better than one step of one layer allows."""
    least = sum(min(o.cost for o in options) for options in layers)
    cost, error = spent(layers, allocate(layers, least + more, "keep"))
    assert cost <= least + more
    best = min(spent(layers, list(c))[1] for c in product(*(range(len(o)) for o in layers)) if _cheap(layers, c, cost))
    assert error <= best + max(max(o.error for o in options) - min(o.error for o in options) for options in layers)


def _cheap(layers: list[list[Option]], chosen: tuple[int, ...], cost: float) -> bool:
    return spent(layers, list(chosen))[0] <= cost


def test_steps_go_where_they_gain_most() -> None:
    steep = [Option(n, 2.0**-n) for n in range(6)]
    flat = [Option(n, 1 - n / 16) for n in range(6)]
    assert allocate([steep, flat], 6, "keep") == [4, 2]
    assert allocate([steep, flat], 10, "keep") == [5, 5]


def test_an_option_above_the_hull_is_for_what_is_left() -> None:
    options = [Option(0, 1.0), Option(1, 0.95), Option(3, 0.0)]
    other = [Option(0, 1.0), Option(1, 0.8)]
    assert allocate([options, other], 1, "keep") == [0, 1]
    assert allocate([options, other], 2, "keep") == [1, 1]
    assert allocate([options, other], 3, "keep") == [2, 0]


def test_a_budget_below_the_cheapest_options() -> None:
    with pytest.raises(RecipeError, match="cost 4 at least"):
        allocate([[Option(3, 0)], [Option(1, 0)]], 3, "keep")
