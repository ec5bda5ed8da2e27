"""One weight before and after quantization: its values as an area, its codes' values as a line of steps."""

from __future__ import annotations

from markupsafe import Markup

from qcompile.compiler.report import Histogram
from qcompile.compiler.reporting.charts.svg import Scale, path, picture, tag
from qcompile.compiler.reporting.wording import plain, significant

WIDTH, HEIGHT = 340.0, 132.0
TOP, BOTTOM = 6.0, 18.0


def histogram_chart(weight: Histogram) -> Markup:
    """Counts over values; both series share the bins and the vertical scale."""
    edges = weight.edges
    if len(edges) < 2:
        return Markup("")
    x = Scale(edges[0], edges[-1], 2, WIDTH - 2)
    most = max([*weight.float_counts, *weight.quantized_counts, 1])
    y = Scale(0, most, HEIGHT - BOTTOM, TOP)
    float_steps, code_steps = _steps(edges, weight.float_counts, x, y), _steps(edges, weight.quantized_counts, x, y)
    labels = [tag("text", significant(edges[0], 2), x=2, y=HEIGHT - 4, class_="label")]
    if edges[0] < 0 < edges[-1]:
        labels.append(tag("line", x1=x(0), x2=x(0), y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4, class_="axis"))
        labels.append(tag("text", "0", x=x(0), y=HEIGHT - 4, class_="label", text_anchor="middle"))
    labels.append(tag("text", significant(edges[-1], 2), x=WIDTH - 2, y=HEIGHT - 4, class_="label", text_anchor="end"))
    return picture(
        WIDTH,
        HEIGHT,
        f"Values of {plain(weight.name)} before and after quantization",
        tag("path", d=path(float_steps) + "Z", class_="float-area"),
        tag("path", d=path(code_steps), class_="code-line"),
        tag("line", x1=2, x2=WIDTH - 2, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="axis"),
        *labels,
        class_="histogram",
    )


def _steps(edges: list[float], counts: list[int], x: Scale, y: Scale) -> list[tuple[float, float]]:
    points = [(x(edges[0]), y(0))]
    for left, right, number in zip(edges, edges[1:], counts, strict=False):
        points += [(x(left), y(number)), (x(right), y(number))]
    return [*points, (x(edges[-1]), y(0))]
