"""What goes to meet a budget: the cheapest units for what they save, over all groups together.

    steps of a group:  its units by importance, least first, so many at a time that a multiple of `multiple` stays
    order all steps by (importance lost) / (multiply-accumulates saved); the shortest prefix that meets the budget goes

Within a group steps become dearer, so a prefix takes them in their order.
Source: the greedy solution of the knapsack problem (Dantzig, 1957), whose last item is small here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Prunable:
    """A group whose units may go.

    Attributes:
        importance: of each unit, at least 0; comparable over groups.
        saved: what one unit saves, in multiply-accumulates.
        multiple: as many units stay as a multiple of this.
        least: fewer never stay.
    """

    importance: npt.NDArray[np.float64]
    saved: float
    multiple: int
    least: int


@dataclass(frozen=True)
class Step:
    """Units of one group that go together, and their importance for each multiply-accumulate that they save."""

    group: int
    units: tuple[int, ...]
    price: float


def ranked(groups: Sequence[Prunable]) -> list[Step]:
    """All steps, cheapest first; those of one group in the order in which they must be made."""
    found = [step for i, group in enumerate(groups) for step in _steps(i, group)]
    return sorted(found, key=lambda step: step.price)


def shortest(order: Sequence[Step], reached: Callable[[Sequence[Step]], bool]) -> list[Step] | None:
    """The shortest prefix of `order` that meets a budget, by bisection; None where all of it does not.

    Args:
        reached: whether a prefix meets the budget; so does every longer one.
    """
    if not reached(order):
        return None
    length = bisect_left(range(len(order)), True, key=lambda n: reached(order[:n]))
    return list(order[:length])


def gone(steps: Sequence[Step]) -> dict[int, npt.NDArray[np.intp]]:
    """The units that go, sorted, by group."""
    found: dict[int, list[int]] = {}
    for step in steps:
        found.setdefault(step.group, []).extend(step.units)
    return {group: np.sort(np.array(units, np.intp)) for group, units in sorted(found.items())}


def _steps(group: int, prunable: Prunable) -> list[Step]:
    importance, multiple = prunable.importance, prunable.multiple
    order = np.argsort(importance, kind="stable")
    start = 0
    found: list[Step] = []
    while True:
        end = start + ((order.size - start - 1) % multiple + 1)
        if order.size - end < prunable.least:
            return found
        units = order[start:end]
        price = float(importance[units].mean()) / prunable.saved
        found.append(Step(group, tuple(int(u) for u in units), price))
        start = end
