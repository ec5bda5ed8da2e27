"""Stacked bars of the same length scale, one below the other: bytes before and after, by group."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from qcompile.compiler.report import TensorBytes
from qcompile.compiler.reporting.charts.svg import tag
from qcompile.compiler.reporting.wording import data_size, plain

WIDTH, BAR = 1000.0, 44.0
MOST_GROUPS = 5


def largest_groups(tensors: Sequence[TensorBytes], bytes_before: int, bytes_after: int) -> list[TensorBytes]:
    """The largest groups in the order of their size before, what is left of the files as 'everything else'."""
    ordered = sorted(tensors, key=lambda t: (-max(t.before, t.after), t.name))[:MOST_GROUPS]
    rest_before = max(bytes_before - sum(t.before for t in ordered), 0)
    rest_after = max(bytes_after - sum(t.after for t in ordered), 0)
    if rest_before or rest_after:
        name = "everything else" if ordered else "file"
        ordered.append(TensorBytes(name=name, before=rest_before, after=rest_after))
    return ordered


def stack_bar(groups: Sequence[TensorBytes], which: str, longest: int) -> Markup:
    """One bar. `which` is 'before' or 'after'; `longest` is the number of bytes of the full width."""
    x, parts = 0.0, []
    for i, group in enumerate(groups):
        size = getattr(group, which)
        width = size / (longest or 1) * WIDTH
        tip = f"{plain(group.name)}\n{data_size(group.before)} before, {data_size(group.after)} after"
        parts.append(
            tag("rect", tag("title", tip), x=x, y=0, width=max(width - 2, 0), height=BAR, class_=f"group-{i % 6}")
        )
        x += width
    return tag(
        "svg",
        tag("title", f"Bytes {which}: " + ", ".join(f"{g.name} {data_size(getattr(g, which))}" for g in groups)),
        *parts,
        viewBox=f"0 0 {WIDTH:g} {BAR:g}",
        preserveAspectRatio="none",
        role="img",
        class_="stack",
    )
