"""Numbers for the indices of axes, and which of them stand for the same channel: union-find over arrays.

Source: Tarjan 1975; the smallest number of a class represents it, so that FROZEN stays what it is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.intp]
"""A number for each index of one axis."""

FROZEN = 0
"""The class of indices that stay."""


class Indices:
    """The classes of all indices that were numbered so far."""

    def __init__(self) -> None:
        self._parent = np.zeros(1024, np.intp)
        self._count = 1

    def __len__(self) -> int:
        return self._count

    def fresh(self, count: int) -> Ids:
        """`count` new indices, each a class of its own."""
        found = np.arange(self._count, self._count + count)
        self._count += count
        if self._count > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros(self._count, np.intp)])
        self._parent[found] = found
        return found

    def find(self, ids: Ids) -> Ids:
        """What represents the class of each of `ids`."""
        root = self._parent[ids]
        while not np.array_equal(root, above := self._parent[root]):
            root = above
        self._parent[ids] = root
        return root

    def unite(self, a: Ids, b: Ids) -> None:
        """Each of `a` with the one of `b` at the same place; they broadcast."""
        a, b = np.broadcast_arrays(a, b)
        while True:
            first, second = self.find(a), self.find(b)
            apart = first != second
            if not apart.any():
                return
            low, high = np.minimum(first, second)[apart], np.maximum(first, second)[apart]
            np.minimum.at(self._parent, high, low)

    def live(self, ids: Ids) -> int:
        """How many classes besides the frozen one are among `ids`."""
        return int(np.count_nonzero(np.unique(self.find(ids)) != FROZEN))

    def copy(self) -> Indices:
        other = Indices()
        other._parent, other._count = self._parent.copy(), self._count
        return other
