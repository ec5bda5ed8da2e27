"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

import math
import re

from qcompile.compiler.report import LayerNoise, Report
from qcompile.compiler.reporting.charts.gains import gain_bars
from qcompile.compiler.reporting.charts.histogram import histogram_chart
from qcompile.compiler.reporting.charts.noise import noise_chart
from qcompile.compiler.reporting.charts.placement import CLASSES, strip
from qcompile.compiler.reporting.charts.stack import largest_groups, stack_bar
from qcompile.compiler.reporting.charts.timeline import timeline
from qcompile.compiler.reporting.page import render_page
from qcompile.compiler.reporting.summary import float_groups, unit_groups
from qcompile.compiler.reporting.verdict import verdict

MOST_HISTOGRAMS = 12
MOST_BARS = 16


def render(report: Report) -> str:
    """`report` as HTML text: inline style, script and pictures, light and dark."""
    worst_weights = sorted(report.weights, key=lambda w: w.sqnr)[:MOST_HISTOGRAMS]
    return render_page(
        "report.html.jinja",
        report=report,
        name=re.split(r"[/\\]", report.model)[-1],
        verdict=verdict(report),
        state={True: "passed", False: "failed", None: "untried"},
        sign={True: "✔", False: "✘", None: "○"},
        outputs=sorted(report.outputs, key=lambda o: o.sqnr),
        groups=largest_groups(report.tensors, report.bytes_before, report.bytes_after) if report.bytes_before else [],
        longest=max(report.bytes_before, report.bytes_after),
        stack_bar=stack_bar,
        noise_chart=noise_chart(report.layers),
        worst_layers=sorted(report.layers, key=_noise_key),
        sort_value=_sort_value,
        gain_bars=gain_bars(report.float_gains),
        most_bars=MOST_BARS,
        strip=strip(report.placement),
        classes=CLASSES,
        unit_groups=unit_groups(report),
        refuted=[u for u in report.units if u.proved is False],
        float_groups=float_groups(report),
        weights=[(w, histogram_chart(w)) for w in worst_weights],
        timeline=timeline(report.passes),
        total_seconds=sum(p.seconds for p in report.passes),
        phases=list(dict.fromkeys(p.phase for p in report.passes)),
        phase_class=_phase_class,
    )


def _noise_key(layer: LayerNoise) -> float:
    """The noise a layer adds itself says where to look; where that was not measured, what has gathered."""
    measured = layer.isolated_sqnr if layer.isolated_sqnr is not None else layer.sqnr
    return math.inf if measured is None or math.isnan(measured) else measured


def _sort_value(number: float | None) -> str:
    return "1e9" if number is None or not math.isfinite(number) else f"{number:.9g}"


def _phase_class(phase: str) -> str:
    """A phase called 'quantize' must not share the class of the Q mark."""
    return {"quantize": "quantize-phase"}.get(phase, phase if phase.isidentifier() else "")
