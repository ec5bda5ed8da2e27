"""What each layer would buy in float: bars from a common zero, the longest first, one colour for each operator."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from qcompile.compiler.report import FloatGain, FloatGains

_COLOURS = 6


@dataclass(frozen=True)
class GainBar:
    """One layer: where its bar starts and how long it is, in percent of the whole width, and its colour."""

    record: FloatGain
    start: float
    length: float
    group: int

    @property
    def per_ms(self) -> float | None:
        """dB for a millisecond; None where float would cost next to nothing, or nobody knows what."""
        cost = self.record.float_ms
        return self.record.gain / cost if cost is not None and cost >= 0.005 else None


def gain_bars(found: FloatGains | None) -> list[GainBar]:
    """A bar for each measured layer; bars of layers whose noise cancels other noise point to the left."""
    gains = found.gains if found is not None else []
    low, high = (bound([0.0, *(g.gain for g in gains)]) for bound in (min, max))
    low = max(low, -high / 2) if high else low  # what helps is what the picture is for
    span = (high - low) or 1.0
    group = {op: min(i, _COLOURS - 1) for i, (op, _) in enumerate(Counter(g.op_type for g in gains).most_common())}
    drawn = [(g, max(g.gain, low)) for g in gains]
    return [GainBar(g, (min(x, 0.0) - low) / span * 100, abs(x) / span * 100, group[g.op_type]) for g, x in drawn]
