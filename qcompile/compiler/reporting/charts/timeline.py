"""The passes one after the other on a common time axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcompile.compiler.report import PassRecord


@dataclass(frozen=True)
class Bar:
    """One pass: where its bar starts and how long it is, in percent of the whole."""

    record: PassRecord
    start: float
    length: float


def timeline(passes: Sequence[PassRecord]) -> list[Bar]:
    """A bar for each pass, in order."""
    total = sum(p.seconds for p in passes) or 1.0
    bars, spent = [], 0.0
    for record in passes:
        bars.append(Bar(record, spent / total * 100, record.seconds / total * 100))
        spent += record.seconds
    return bars
