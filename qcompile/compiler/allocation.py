"""One option for each layer, so that errors add up to the least that a budget allows.

    min sum_l error_l(o_l)   under   sum_l cost_l(o_l) <= budget

Each layer starts with its cheapest option and climbs the lower convex hull of its options; the steps of all layers are
taken in the order of what they gain for their cost, as long as they fit. That is the optimum of the relaxation in
which options may be mixed, but for the last steps; what is left goes into options off the hull.
Source: the greedy solution of the multiple-choice knapsack of Sinha and Zoltners, 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Option:
    """What one choice costs, and what it loses."""

    cost: float
    error: float


def allocate(layers: Sequence[Sequence[Option]], budget: float) -> list[int]:
    """The number of the option that each layer takes; the cheapest of all fit into `budget`."""
    hulls = [_hull(options) for options in layers]
    taken = [hull[0] for hull in hulls]
    left = budget - sum(options[i].cost for options, i in zip(layers, taken, strict=True))
    assert left >= 0
    steps = [
        (_slope(layers[i], a, b), i, n, b) for i, hull in enumerate(hulls) for n, (a, b) in enumerate(pairwise(hull))
    ]
    for _, i, _, b in sorted(steps):
        added = layers[i][b].cost - layers[i][taken[i]].cost
        if added <= left:
            taken[i], left = b, left - added
    while better := _better(layers, taken, left):
        i, b = better
        left -= layers[i][b].cost - layers[i][taken[i]].cost
        taken[i] = b
    return taken


def _better(layers: Sequence[Sequence[Option]], taken: Sequence[int], left: float) -> tuple[int, int] | None:
    """The layer and the option of it that gain most with what is left."""
    gains = [
        (now.error - option.error, -i, -n)
        for i, options in enumerate(layers)
        for n, option in enumerate(options)
        if (now := options[taken[i]]).error > option.error and option.cost - now.cost <= left
    ]
    if not gains:
        return None
    _, i, n = max(gains)
    return -i, -n


def _hull(options: Sequence[Option]) -> list[int]:
    """The options on the lower convex hull, from the cheapest to the one of the least error."""
    order = sorted(range(len(options)), key=lambda i: (options[i].cost, options[i].error))
    hull: list[int] = []
    for i in order:
        if hull and options[i].error >= options[hull[-1]].error:
            continue  # dearer and no better
        while len(hull) > 1 and _slope(options, hull[-2], hull[-1]) > _slope(options, hull[-1], i):
            hull.pop()
        hull.append(i)
    return hull


def _slope(options: Sequence[Option], a: int, b: int) -> float:
    return (options[b].error - options[a].error) / (options[b].cost - options[a].cost)
