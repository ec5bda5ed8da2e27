"""What goes is the cheapest for what it saves."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.passes.transform.pruning.budget import Prunable, Step, gone, ranked, shortest


def group(*importance: float, saved: float = 1.0, multiple: int = 1, least: int = 1) -> Prunable:
    return Prunable(np.array(importance), saved, multiple, least)


def test_least_important_first_and_what_saves_more_before_what_saves_less() -> None:
    order = ranked([group(3, 1, 2), group(4, 6, 8, saved=4)])
    assert [(step.group, step.units) for step in order] == [(0, (1,)), (1, (0,)), (1, (1,)), (0, (2,))]


@pytest.mark.parametrize(("size", "multiple", "least", "left"), [(20, 8, 3, [16, 8]), (16, 8, 9, []), (7, 8, 1, [])])
def test_multiples_stay(size: int, multiple: int, least: int, left: list[int]) -> None:
    taken = np.cumsum([len(s.units) for s in ranked([group(*range(size), multiple=multiple, least=least)])])
    assert [size - int(t) for t in taken] == left


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 50), min_size=1, max_size=5), st.integers(1, 4)), min_size=1, max_size=3
    ),
    st.floats(0, 1),
)
def test_nothing_cheaper_saves_as_much(drawn: list[tuple[list[int], int]], share: float) -> None:
    """Against all choices: one that loses less saves less, up to the last step."""
    groups = [group(*map(float, importance), saved=float(saved)) for importance, saved in drawn]
    order = ranked(groups)
    goal = share * saving(groups, order)
    found = shortest(order, lambda steps: saving(groups, steps) >= goal)
    assert found is not None
    lost = sum(groups[s.group].importance[list(s.units)].sum() for s in found[:-1])
    for counts in product(*(range(g.importance.size) for g in groups)):
        other = sum(np.sort(g.importance)[:n].sum() for g, n in zip(groups, counts, strict=True))
        if other < lost - 1e-9:
            assert sum(g.saved * n for g, n in zip(groups, counts, strict=True)) < goal or goal == 0


def saving(groups: list[Prunable], steps: list[Step] | tuple[Step, ...]) -> float:
    return sum(groups[s.group].saved * len(s.units) for s in steps)


def test_out_of_reach() -> None:
    assert shortest(ranked([group(1, 2)]), lambda steps: False) is None


def test_units_that_go_are_sorted() -> None:
    found = gone(ranked([group(9), group(5, 1, 3)]))
    assert {i: list(units) for i, units in found.items()} == {1: [1, 2]}
