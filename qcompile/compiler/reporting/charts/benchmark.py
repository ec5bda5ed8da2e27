"""A benchmark as one picture that stands alone: times at each size of input, and the roof that the device puts on them.

Left, a bar for each model, the slowest of each size as long as the panel, with a line as long as the quartiles are
apart. Right, the roofline: operations a second over operations a byte, both on scales of powers of ten. What was
measured lies below the ceilings of the same run, but for bytes that come from a cache.
Source: Williams, Waterman, Patterson, "Roofline", 2009.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from markupsafe import Markup

from qcompile.compiler.reporting.bench_terminal import short_names, sizes
from qcompile.compiler.reporting.charts.svg import Scale, path, tag
from qcompile.compiler.reporting.wording import plain, significant
from qcompile.runtime.benchmark.results import Benchmark, Row

WIDTH = 1060.0
_MARGIN, _TOP, _LEGEND = 24.0, 92.0, 20.0
_BAR, _GAP, _LABEL = 16.0, 14.0, 20.0
_BARS = 360.0  # of the longest bar; what it says stands behind it
_ROOF_LEFT, _ROOF_RIGHT, _ROOF_HEIGHT = 640.0, 24.0, 300.0
_COLOURS = 6

_STYLE = """
:root { --page: #ffffff; --ink: #16181d; --soft: #5a606c; --line: #e4e4de; --faint: #8a909b;
  --c0: #1f5fc4; --c1: #2aa58a; --c2: #8b62c9; --c3: #e0871b; --c4: #c2537f; --c5: #8a8d94; }
@media (prefers-color-scheme: dark) { :root { --page: #171a20; --ink: #e9ebef; --soft: #a2a8b4; --line: #2a2f38;
  --faint: #747b88; --c0: #5f9ff5; --c1: #35b598; --c2: #a98ae0; --c3: #f0a648; --c4: #dc7ba2; --c5: #8a919d; } }
svg { background: var(--page); }
text { fill: var(--soft); font: 12px system-ui, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
.title { fill: var(--ink); font-size: 18px; font-weight: 650; } .size { fill: var(--ink); font-weight: 600; }
.grid { stroke: var(--line); } .roof { stroke: var(--faint); stroke-width: 1.5; fill: none; }
.quartiles { stroke: var(--ink); stroke-width: 1.5; }
circle { stroke: var(--page); stroke-width: 1.5; }
""" + "\n".join(f".model-{i} {{ fill: var(--c{i}); }}" for i in range(_COLOURS))


def benchmark_chart(found: Benchmark) -> Markup:
    """The text of an .svg file."""
    names = short_names(found)
    first, *others = names.values()
    colour = {model: f"model-{i % _COLOURS}" for i, model in enumerate(found.models)}
    top = _TOP + _LEGEND * len(names)
    groups = [list(rows) for _, rows in groupby(found.rows, key=sizes)]
    height = max(top + sum(map(_height, groups)), _TOP + _ROOF_HEIGHT) + _MARGIN
    return tag(
        "svg",
        tag("title", f"Times of {', '.join(names.values())} on {found.device}"),
        Markup(f"<style>{_STYLE}</style>"),
        tag("text", " against ".join(filter(None, (first, ", ".join(others)))), x=_MARGIN, y=38, class_="title"),
        tag("text", f"{found.provider} on {found.device}", x=_MARGIN, y=60),
        *_legend(names, colour),
        *_bars(found, groups, colour, top),
        *_roofline(found, colour),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        width=WIDTH,
        height=height,
        role="img",
    )


def _legend(names: dict[str, str], colour: dict[str, str]) -> Iterator[Markup]:
    for i, (model, name) in enumerate(names.items()):
        y = _TOP + i * _LEGEND
        yield tag("rect", x=_MARGIN, y=y - 10, width=12, height=12, rx=3, class_=colour[model])
        yield tag("text", name, x=_MARGIN + 20, y=y)


def _height(group: Sequence[Row]) -> float:
    return _LABEL + _BAR * len(group) + _GAP


def _bars(found: Benchmark, groups: Sequence[Sequence[Row]], colour: dict[str, str], y: float) -> Iterator[Markup]:
    for group in groups:
        yield tag("text", sizes(group[0]), x=_MARGIN, y=y + 12, class_="size")
        x = Scale(0, max(row.milliseconds * (1 + row.spread / 2) for row in group), _MARGIN, _MARGIN + _BARS)
        for i, row in enumerate(group):
            at, middle = y + _LABEL + i * _BAR, y + _LABEL + (i + 0.5) * _BAR - 1
            low, high = (row.milliseconds * (1 + sign * row.spread / 2) for sign in (-1, 1))
            told = f"{significant(row.milliseconds)} ms · {significant(row.per_second)} {found.unit}/s"
            length = x(row.milliseconds) - _MARGIN
            yield tag("rect", x=_MARGIN, y=at, width=length, height=_BAR - 2, rx=2, class_=colour[row.model])
            yield tag("line", x1=x(low), x2=x(high), y1=middle, y2=middle, class_="quartiles")
            yield tag("text", told, x=x(high) + 8, y=at + 11)
        y += _height(group)


def _roofline(found: Benchmark, colour: dict[str, str]) -> Iterator[Markup]:
    """Rows without operations have no place in it."""
    rows = [row for row in found.rows if row.gflops > 0 and row.bytes > 0]
    if not rows:
        return
    intensity = [sum(row.operations.values()) / row.bytes for row in rows]
    best = max([*found.products.values(), *(row.gflops for row in rows)])
    ridges = [rate / found.copy for rate in found.products.values()]
    xs = _decades([*intensity, *ridges], _ROOF_LEFT + 40, WIDTH - _ROOF_RIGHT)
    ys = _decades([best, *(row.gflops for row in rows)], _TOP + _ROOF_HEIGHT - 44, _TOP)
    yield from _axes(xs, ys)
    reach = 10**xs.low * found.copy
    for kind, rate in found.products.items():
        ridge = rate / found.copy
        roof = [(_at(xs, 10**xs.low), _at(ys, reach)), (_at(xs, ridge), _at(ys, rate)), (xs.end, _at(ys, rate))]
        yield tag("path", d=path(roof), class_="roof")
        yield tag("text", f"products of {kind}", x=xs.end, y=_at(ys, rate) - 5, text_anchor="end")
    for row, x in zip(rows, intensity, strict=True):
        tip = f"{plain(row.model)}\n{sizes(row)}\n{significant(row.gflops)} GFLOP/s, {significant(row.gbytes)} GB/s"
        mark = tag("circle", tag("title", tip), cx=_at(xs, x), cy=_at(ys, row.gflops), r=6, class_=colour[row.model])
        yield mark


def _decades(values: Sequence[float], start: float, end: float) -> Scale:
    """A scale of logarithms from one power of ten to another that holds all values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    return Scale(low, max(high, low + 1), start, end)


def _at(scale: Scale, value: float) -> float:
    return scale(math.log10(value))


def _axes(xs: Scale, ys: Scale) -> Iterator[Markup]:
    for power in range(round(ys.low), round(ys.high) + 1):
        y = ys(power)
        yield tag("line", x1=xs.start, x2=xs.end, y1=y, y2=y, class_="grid")
        yield tag("text", f"{10.0**power:g}", x=xs.start - 8, y=y + 4, text_anchor="end")
    for power in range(round(xs.low), round(xs.high) + 1):
        x = xs(power)
        yield tag("line", x1=x, x2=x, y1=ys.start, y2=ys.end, class_="grid")
        yield tag("text", f"{10.0**power:g}", x=x, y=ys.start + 18, text_anchor="middle")
    yield tag("text", "GFLOP/s", x=xs.start - 8, y=ys.end - 12, text_anchor="end")
    yield tag("text", "operations for each byte", x=xs.end, y=ys.start + 38, text_anchor="end")
