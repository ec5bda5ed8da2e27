"""Numbers and names as a reader wants them: three significant digits, decimal units, no control characters."""

from __future__ import annotations

import math

from qcompile.compiler.report import NOISELESS


def plain(name: str) -> str:
    """`name` with every character that is not printable written as an escape.

    Names come from model files, which anybody may have made; a terminal must not obey them.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def shortened(name: str, width: int) -> str:
    """`plain(name)` in at most `width` characters, the middle left out: both ends of a node name tell."""
    name = plain(name)
    if len(name) <= width:
        return name
    head = (width - 1) // 2
    return name[:head] + "…" + name[len(name) - (width - 1 - head) :]


def significant(number: float, digits: int = 3) -> str:
    """`number` with `digits` significant digits and no exponent between 1e-4 and 1e6."""
    if not math.isfinite(number):
        return {math.inf: "∞", -math.inf: "-∞"}.get(number, "n/a")
    if number == 0:
        return "0"
    rounded = float(f"{number:.{digits - 1}e}")
    magnitude = math.floor(math.log10(abs(rounded)))
    if not -4 <= magnitude < 6:
        return f"{number:.{digits - 1}e}"
    return f"{number:.{max(digits - 1 - magnitude, 0)}f}"


def data_size(count: float) -> str:
    """Bytes in decimal units: 18614587 is '18.6 MB'."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 999.5 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{significant(count)} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """Wall time: '<1 ms', '320 ms', '2.51 s', '3 min 20 s'."""
    if seconds >= 60:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    if seconds >= 1:
        return f"{significant(seconds)} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else "<1 ms"


def milliseconds(ms: float | None) -> str:
    """A time that a table expects: no digits that it cannot know."""
    if ms is None:
        return "-"
    return f"{significant(ms, 2)} ms" if ms >= 0.005 else "<0.01 ms"


def decibel(sqnr: float | None) -> str:
    """A signal-to-noise ratio."""
    if sqnr is None:
        return "-"
    return "equal" if sqnr >= NOISELESS else f"{sqnr:.1f} dB"


def cosine(value: float | None) -> str:
    """A cosine with as many digits as its distance from 1 needs."""
    if value is None or math.isnan(value):
        return "-"
    digits = 4 if abs(1 - value) >= 5e-4 else 6
    return f"{value:.{digits}f}"


def times(ratio: float, more: str, less: str) -> str:
    """A ratio in words: `times(2.04, "faster", "slower")` is '2.04x faster', 0.5 '2.00x slower', 1 'no faster'."""
    if not math.isfinite(ratio) or ratio <= 0:
        return "n/a"
    digits = f"{max(ratio, 1 / ratio):.2f}"
    return f"no {more}" if digits == "1.00" else f"{digits}x {more if ratio > 1 else less}"


def count(number: int, noun: str, plural: str = "") -> str:
    """'1 node', '3 nodes'."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
