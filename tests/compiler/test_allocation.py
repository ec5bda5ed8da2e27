"""Spending a budget over layers: against every possible choice."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.allocation import Option, allocate

LAYERS = st.lists(
    st.lists(st.builds(Option, st.integers(1, 9), st.floats(0, 1)), min_size=1, max_size=4), min_size=1, max_size=4
)


def spent(layers: list[list[Option]], chosen: list[int]) -> tuple[float, float]:
    taken = [options[i] for options, i in zip(layers, chosen, strict=True)]
    return sum(o.cost for o in taken), sum(o.error for o in taken)


@settings(max_examples=60, deadline=None)
@given(layers=LAYERS, more=st.integers(0, 20))
def test_against_all_choices(layers: list[list[Option]], more: int) -> None:
    """Within the budget, and no choice within it is better by more than what one layer can gain."""
    least = sum(min(o.cost for o in options) for options in layers)
    cost, error = spent(layers, allocate(layers, least + more))
    assert cost <= least + more
    choices = [spent(layers, list(c)) for c in product(*(range(len(o)) for o in layers))]
    best = min(error for cost, error in choices if cost <= least + more)
    assert error <= best + max(max(o.error for o in options) - min(o.error for o in options) for options in layers)


def test_steps_go_where_they_gain_most() -> None:
    steep = [Option(n, 2.0**-n) for n in range(6)]
    flat = [Option(n, 1 - n / 16) for n in range(6)]
    assert allocate([steep, flat], 6) == [4, 2]
    assert allocate([steep, flat], 10) == [5, 5]


def test_an_option_above_the_hull_is_for_what_is_left() -> None:
    options = [Option(0, 1.0), Option(1, 0.95), Option(3, 0.0)]
    other = [Option(0, 1.0), Option(1, 0.8)]
    assert allocate([options, other], 1) == [0, 1]
    assert allocate([options, other], 2) == [1, 1]
    assert allocate([options, other], 3) == [2, 0]
