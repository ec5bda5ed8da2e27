"""Few of many changes that together reach a goal, from few trials.

    shortest prefix of the order that reaches the goal, by bisection; its last change is needed
    while the goal is overshot: the shortest prefix before it that reaches the goal with all that are needed

A prefix of the best bargains ends with the first large change that carries it over the goal, and then many of the
small ones before it are too much. Source: the divide and conquer of QuickXplain (Junker, 2004), ended early.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import TypeVar

Change = TypeVar("Change")

_OVERSHOT = 1.0
"""Above the goal, from which on fewer changes are looked for; in the goal's unit, dB."""

_NEEDED = 4
"""Changes that are found to be needed, at most: each costs a bisection."""


def fewest(
    order: tuple[Change, ...], reached: Callable[[tuple[Change, ...]], float], goal: float
) -> tuple[Change, ...]:
    """Changes that reach the goal, in the given order, as all of them do.

    Args:
        order: all changes, best bargain first.
        reached: what a choice of them reaches, in dB; assumed to grow with the choice.
    """
    needed: tuple[Change, ...] = ()

    def enough(made: tuple[Change, ...]) -> bool:
        return reached(made + needed) >= goal

    for _ in range(_NEEDED):
        order = _shortest(order, enough)
        if not order or reached(order + needed) < goal + _OVERSHOT:
            break
        order, needed = order[:-1], (order[-1], *needed)
    return order + needed


def _shortest(order: tuple[Change, ...], enough: Callable[[tuple[Change, ...]], bool]) -> tuple[Change, ...]:
    """The shortest prefix that is enough; all of them are."""
    return order[: bisect_left(range(len(order)), True, key=lambda count: enough(order[:count]))]
