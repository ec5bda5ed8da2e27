"""Noise of every layer in graph order: how much it adds alone, and how much has gathered by then."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from qcompile.compiler.report import LayerNoise
from qcompile.compiler.reporting.charts.svg import Scale, picture, tag
from qcompile.compiler.reporting.wording import cosine, decibel, plain

WIDTH, HEIGHT = 1060.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 8.0, 14.0, 28.0
ONE_PERCENT = 20.0  # dB: the noise has one percent of the signal's power


def noise_chart(layers: Sequence[LayerNoise]) -> Markup:
    """A dumbbell for each layer; empty when nothing was measured. Higher is better."""
    measured = [v for layer in layers for v in (layer.sqnr, layer.isolated_sqnr) if v is not None and math.isfinite(v)]
    if not measured:
        return Markup("")
    low = min(ONE_PERCENT - 10, math.floor(min(measured) / 10) * 10.0)
    high = max(ONE_PERCENT + 10, math.ceil(max(measured) / 10) * 10.0)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT) / len(layers)
    return picture(
        WIDTH,
        HEIGHT,
        f"Signal-to-noise ratio of {len(layers)} layers in graph order, in dB; higher is better",
        *_axis(y),
        *(_layer(layer, LEFT + i * step, step, y) for i, layer in enumerate(layers)),
        tag("text", "input", x=LEFT, y=HEIGHT - 8, class_="label"),
        tag("text", "output", x=WIDTH - RIGHT, y=HEIGHT - 8, class_="label", text_anchor="end"),
        class_="noise",
    )


def _axis(y: Scale) -> list[Markup]:
    lines = []
    for tick in y.ticks():
        lines.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick), class_="grid"))
        text = f"{tick:.0f}" + (" dB" if tick == y.ticks()[-1] else "")
        lines.append(tag("text", text, x=LEFT - 8, y=y(tick) + 4, class_="label", text_anchor="end"))
    at = y(ONE_PERCENT)
    lines.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="threshold"))
    return lines


def _layer(layer: LayerNoise, x: float, step: float, y: Scale) -> Markup:
    middle, radius = x + step / 2, min(max(step * 0.3, 1.2), 4.5)
    marks = []
    ends = [v for v in (layer.sqnr, layer.isolated_sqnr) if v is not None]
    if len(ends) == 2:
        marks.append(tag("line", x1=middle, x2=middle, y1=y(ends[0]), y2=y(ends[1]), class_="stem"))
    if layer.isolated_sqnr is not None:
        marks.append(tag("circle", cx=middle, cy=y(layer.isolated_sqnr), r=radius, class_="isolated"))
    if layer.sqnr is not None:
        marks.append(tag("circle", cx=middle, cy=y(layer.sqnr), r=radius, class_="cumulative"))
    return tag(
        "g",
        tag("title", _tip(layer)),
        tag("rect", x=x, y=TOP, width=step, height=HEIGHT - TOP - BOTTOM, class_="hit"),
        *marks,
        class_="layer",
    )


def _tip(layer: LayerNoise) -> str:
    return (
        f"{plain(layer.node)}\n{plain(layer.op_type)}\n"
        f"alone: {decibel(layer.isolated_sqnr)}, cosine {cosine(layer.isolated_cosine)}\n"
        f"with all before it: {decibel(layer.sqnr)}, cosine {cosine(layer.cosine)}"
    )
