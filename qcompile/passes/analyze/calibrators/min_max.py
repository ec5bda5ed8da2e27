"""Min-max: everything that was seen.

[low, high] = [min x, max x]
"""

from __future__ import annotations

from dataclasses import dataclass

from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.statistics import Clip, Statistic, StatisticsTable


@dataclass(frozen=True)
class MinMax:
    """The smallest and the largest value."""

    name: str = "min-max"
    statistics: tuple[Statistic, ...] = ()

    def clip(self, table: StatisticsTable, tensor: str, spec: QuantSpec) -> Clip:
        seen = table.range_of(tensor)
        assert seen is not None
        return Clip(seen.low, seen.high, self.name)
