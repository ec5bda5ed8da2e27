"""Few changes that reach a goal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qcompile.passes.quantize.fewest import fewest


def total(made: tuple[int, ...]) -> float:
    return float(sum(made))


def test_the_small_ones_before_a_large_one_are_left_out() -> None:
    assert fewest((1, 1, 1, 1, 20, 3), total, 20) == (20,)


def test_nothing_is_needed() -> None:
    assert fewest((5, 5), total, 0) == ()


def test_all_are_needed() -> None:
    assert fewest((5, 4, 1), total, 10) == (5, 4, 1)


def test_several_are_needed() -> None:
    assert fewest((1, 8, 1, 9, 1), total, 17) == (8, 9)


@given(st.lists(st.integers(0, 9), max_size=12), st.floats(0, 1))
def test_the_goal_is_reached_and_the_order_kept(changes: list[int], part: float) -> None:
    goal = part * sum(changes)
    chosen = fewest(tuple(changes), total, goal)
    assert total(chosen) >= goal
    rest = iter(changes)
    assert all(change in rest for change in chosen)
    whole = next(n for n in range(len(changes) + 1) if sum(changes[:n]) >= goal)
    assert len(chosen) <= whole
