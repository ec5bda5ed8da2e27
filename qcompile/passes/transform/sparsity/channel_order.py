"""The order of channels in which a pattern N:M keeps most of the weights' energy.

    max over orders   sum over rows, groups of M columns   of the N largest e_ij,      e = w^2

Pairs of columns change places while that gains. With T_a the N-th largest of the others in the group of column a, and
B_a the sum of the N - 1 largest, column b in its place gives B_a + max(T_a, e_b): so all pairs are weighed by
one table of sums over the rows. In a round each group takes part in one change at most, the best first.
e: [rows, columns]. Source: Pool and Yu, "Channel Permutations for N:M Sparsity", 2021, who weigh groups two by two.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qcompile.compiler.weight_pattern import Pattern

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.intp]

_ROUNDS = 30
_ROWS = 512
"""Rows that are looked at, at most: so many tell of columns what all would."""

_LEAST_GAIN = 1e-6
"""Share of the energy from which a change of places is one."""


def kept_energy(energy: Floats, pattern: Pattern) -> float:
    """What the pattern keeps of `energy`."""
    groups = energy.reshape(len(energy), -1, pattern.group)
    return float(np.partition(groups, -pattern.kept, axis=2)[..., -pattern.kept :].sum(dtype=np.float64))


def best_order(energy: Floats, kinds: Ids, pattern: Pattern) -> Ids:
    """Columns in an order that keeps at least as much of `energy` [rows, columns] as theirs; only those of one kind
    change places."""
    columns = np.ascontiguousarray(energy[:: -(-len(energy) // _ROWS)].T)
    groups = np.arange(len(columns)).reshape(-1, pattern.group)
    least = _LEAST_GAIN * float(columns.sum(dtype=np.float64))
    placed = np.zeros((len(columns), len(columns)), np.float32)
    changed = np.arange(len(groups))
    for _ in range(_ROUNDS):
        for group in groups[changed]:
            placed[group] = _in_place_of_each(group, columns, pattern)
        changed = _exchange(groups, placed, kinds, least)
        if not len(changed):
            break
    order = groups.reshape(-1)
    return order if kept_energy(energy[:, order], pattern) > kept_energy(energy, pattern) else np.arange(len(order))


def _in_place_of_each(group: Ids, columns: Floats, pattern: Pattern) -> Floats:
    """What the group keeps with any of the columns in the place of each of its own: [group, columns]."""
    found = []
    for place in range(len(group)):
        others = -np.sort(-columns[np.delete(group, place)], axis=0)
        last, sure = others[pattern.kept - 1], others[: pattern.kept - 1].sum(dtype=np.float64)
        found.append(np.maximum(last, columns).sum(axis=1) + sure)
    return np.asarray(found, np.float32)


def _exchange(groups: Ids, placed: Floats, kinds: Ids, least: float) -> Ids:
    """Exchange the columns of most gain, those of a group once at most; returns the groups that are others now.

    Args:
        placed: [column, other] what the group of a column keeps with the other in its place.
    """
    count, size = groups.shape
    group = np.empty(count * size, np.intp)
    group[groups] = np.arange(count)[:, None]
    now = np.diagonal(placed)
    gains = placed + placed.T - now[:, None] - now
    gains[(kinds[:, None] != kinds) | (group[:, None] <= group)] = 0
    firsts, seconds = np.nonzero(gains > least)
    best = np.argsort(-gains[firsts, seconds], kind="stable")
    changed = np.zeros(count, bool)
    for first, second in zip(firsts[best].tolist(), seconds[best].tolist(), strict=True):
        a, b = group[first], group[second]
        if not (changed[a] or changed[b]):
            changed[[a, b]] = True
            groups[a][groups[a] == first], groups[b][groups[b] == second] = second, first
    return np.flatnonzero(changed)
