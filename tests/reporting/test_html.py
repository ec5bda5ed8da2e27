from __future__ import annotations

import math
import re
from html.parser import HTMLParser

from made_up import encoder_report

from qcompile.compiler.report import Edit, FloatGain, FloatGains, LayerNoise, OutputNoise, PlacedNode, Proof, Report
from qcompile.compiler.reporting.charts.gains import gain_bars
from qcompile.compiler.reporting.charts.noise import noise_chart
from qcompile.compiler.reporting.charts.placement import strip
from qcompile.compiler.reporting.charts.svg import Scale, tag
from qcompile.compiler.reporting.html import render

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Tags(HTMLParser):
    """Counts elements, collects attributes that reach outside, checks that elements are closed."""

    VOID = frozenset({"meta", "link", "input", "br", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.outside: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1
        self.outside += [v or "" for k, v in attributes if k in ("src", "href") and v != "data:,"]
        if name not in self.VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name


def test_the_page_is_whole_and_fetches_nothing() -> None:
    html = render(encoder_report())
    tags = Tags(html)
    assert tags.open == []
    assert tags.outside == []
    assert tags.counts["script"] == 1
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert tags.counts["svg"] == 2 + 1 + 9  # two stacks, the noise chart, nine histograms
    for section in ("before-after", "noise", "placement", "units", "kept-float", "weights", "proofs", "passes"):
        assert f'<section id="{section}">' in html


def test_an_edit_has_a_section_of_its_own() -> None:
    report = encoder_report()
    assert '<section id="edit">' not in render(report)
    report.edit = Edit(passes=[EVIL], outputs=[OutputNoise(name=EVIL, sqnr=12.3, cosine=0.97, max_error=2)])
    html = render(report)
    assert Tags(html).open == []
    assert EVIL not in html
    assert '<section id="edit">' in html
    assert "Noise against the edited float model" in html
    assert "The edit, worst output</span>\n    <b>12.3 dB</b>" in html


def test_where_nothing_shall_be_low_precision_no_picture_asks_where_it_is() -> None:
    report = encoder_report()
    assert '<section id="placement">' in render(report)
    report.units, report.kept_float = [], []
    assert '<section id="placement">' not in render(report)


def test_every_name_is_escaped() -> None:
    report = encoder_report(refuted=True, slower=True)
    report.model = report.artifact = report.recipe = report.target = report.data = EVIL
    report.notices = [EVIL]
    report.versions = {EVIL: EVIL}
    for record in [*report.units, *report.kept_float, *report.placement]:
        record.node = record.op_type = record.reason = EVIL
    report.units[0].kernel = EVIL
    for layer in report.layers:
        layer.node = layer.op_type = layer.value = EVIL
    for named in [*report.outputs, *report.weights, *report.tensors, *report.passes]:
        named.name = EVIL
    report.passes[0].phase = EVIL
    report.proofs.append(Proof(name=EVIL, passed=False, detail=EVIL))
    assert report.speed
    report.speed.provider, report.speed.slowest = EVIL, [(EVIL, 1.0)]
    html = render(report)
    tags = Tags(html)
    assert tags.counts["script"] == 1
    assert "img" not in tags.counts
    assert "&lt;script&gt;" in html
    assert "<script>alert" not in html


def test_the_policy_allows_the_script_of_the_page_by_hash_only() -> None:
    html = render(encoder_report())
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert "default-src &#39;none&#39;" in policy
    assert "script-src &#39;sha256-" in policy


def test_an_empty_report_renders() -> None:
    html = render(Report(model="m.onnx", artifact="o.onnx", recipe="r", target="cpu", versions={}, data="none"))
    assert Tags(html).open == []
    assert '<section id="noise">' not in html


def test_same_report_same_page() -> None:
    assert render(encoder_report()) == render(encoder_report())


def test_unusual_numbers_are_drawn() -> None:
    layers = [
        LayerNoise(node="equal", op_type="Add", value="v", sqnr=math.inf, cosine=1.0, isolated_sqnr=math.inf),
        LayerNoise(node="bad", op_type="Add", value="v", sqnr=-12.0, cosine=math.nan, isolated_sqnr=None),
        LayerNoise(node="unknown", op_type="Add", value="v"),
    ]
    drawn = str(noise_chart(layers))
    assert "nan" not in drawn
    assert "inf" not in drawn.replace("information", "")
    assert drawn.count("<circle") == 3
    assert noise_chart(layers[2:]) == ""


def test_the_strip_groups_by_scope_and_counts_conversions() -> None:
    report = encoder_report(layers=6)
    drawn = strip(report.placement)
    assert [r.scope for r in drawn.rows][:3] == ["embeddings", "encoder/layer.0", "encoder/layer.1"]
    assert sum(len(r.cells) for r in drawn.rows) == len(report.placement)
    assert sum(drawn.counts.values()) == len(report.placement)
    assert drawn.quantizes == sum(p.quantizes for p in report.placement)
    flat = strip([PlacedNode(node=f"Conv_{i}", op_type="Conv", form="float") for i in range(500)])
    assert len(flat.rows) == 1
    assert not flat.labelled


def test_svg_tags_escape_and_scales_have_round_ticks() -> None:
    assert tag("text", "<b>", x=1.0, class_='a"b') == '<text x="1" class="a&#34;b">&lt;b&gt;</text>'
    assert Scale(0, 50, 0, 1).ticks() == [0, 10, 20, 30, 40, 50]
    assert Scale(0, 50, 100, 0)(25) == 50
    assert Scale(0, 50, 100, 0)(80) == 0


def test_bars_of_gains_start_at_one_zero_and_the_longest_fills_its_side() -> None:
    measured = [("Conv", 2.0, 0.5), ("Add", 1.0, None), ("Conv", -0.5, 0.1), ("Conv", -9.0, 0.001)]
    gains = [FloatGain(node=op, op_type=op, form="f", gain=gain, float_ms=ms) for op, gain, ms in measured]
    bars = gain_bars(FloatGains(sqnr=20, units=9, samples=4, gains=gains))
    assert [(round(b.start, 2), round(b.length, 2)) for b in bars] == [
        (33.33, 66.67), (33.33, 33.33), (16.67, 16.67), (0, 33.33),
    ]  # fmt: skip
    assert [b.group for b in bars] == [0, 1, 0, 0]
    assert [b.per_ms for b in bars] == [4.0, None, -5.0, None]
    assert gain_bars(None) == []
