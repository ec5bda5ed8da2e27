"""The pages in a real browser: pictures have sizes, nothing overflows, nothing complains."""

from __future__ import annotations

import html as entities
import json
import re
from pathlib import Path

import numpy as np
import pytest
from chromium import load, screenshot
from made_up import encoder_report
from small_models import convolutions, quantized_by_onnxruntime

from qcompile.compiler.diff import diff
from qcompile.compiler.reporting.diff_html import render_diff
from qcompile.compiler.reporting.html import render

pytestmark = pytest.mark.browser

MEASURE = """<script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument;
  const root = page.documentElement;
  const sizes = [...page.querySelectorAll("svg, .strip, .timeline")].map((e) => {
    const box = e.getBoundingClientRect();
    return [e.getAttribute("class"), Math.round(box.width), Math.round(box.height)];
  });
  document.body.dataset.result = JSON.stringify({
    sizes, width: root.clientWidth, needed: root.scrollWidth, tips: page.querySelectorAll(".tip").length,
    sortable: page.querySelectorAll("th button").length, color: getComputedStyle(page.body).backgroundColor,
  });
});
</script>"""


def measured(tmp_path: Path, html: str, width: int, *flags: str) -> dict[str, object]:
    """Sizes of the pictures of `html` in a frame of `width` pixels."""
    holder = tmp_path / "holder.html"
    frame = f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{entities.escape(html)}"></iframe>'
    holder.write_text(
        f'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><body>{frame}{MEASURE}</body>'
    )
    page = load(holder, *flags)
    assert page.console == []
    [result] = re.findall(r'data-result="([^"]*)"', page.dom)
    return dict(json.loads(entities.unescape(result)))


def test_pictures_have_sizes_and_scripts_run(tmp_path: Path) -> None:
    result = measured(tmp_path, render(encoder_report()), 1200)
    sizes = result["sizes"]
    assert isinstance(sizes, list)
    assert {kind for kind, *_ in sizes} == {"stack", "picture noise", "strip", "picture histogram", "timeline"}
    assert all(width > 100 and height > 10 for _, width, height in sizes)
    assert result["needed"] <= result["width"]  # type: ignore[operator]
    assert result["tips"] == 1
    assert result["sortable"] == 6


@pytest.mark.parametrize("width", [360, 390, 768])
def test_a_phone_does_not_scroll_sideways(tmp_path: Path, width: int) -> None:
    report = encoder_report(refuted=True, slower=True)
    report.model = "x" * 200 + ".onnx"
    report.kept_float[0].reason = "y" * 300
    report.outputs[0].name = "z" * 200
    result = measured(tmp_path, render(report), width)
    assert result["width"] == width
    assert result["needed"] == width


def test_dark_mode_is_dark(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(encoder_report()))
    light = brightness(screenshot(page, tmp_path / "light.png", 1200, 2400))
    dark = brightness(screenshot(page, tmp_path / "dark.png", 1200, 2400, dark=True))
    assert light > 200
    assert dark < 60


@pytest.mark.parametrize("width", [390, 1200])
def test_the_side_by_side_page(tmp_path: Path, width: int) -> None:
    before = convolutions(tmp_path / "before.onnx", prefix="a_module_with_a_very_long_name." * 4)
    found = diff(before, quantized_by_onnxruntime(before, tmp_path / "after.onnx"))
    result = measured(tmp_path, render_diff(found), width)
    assert result["needed"] == width
    assert result["tips"] == 1


def test_a_node_called_script_does_not_run(tmp_path: Path) -> None:
    report = encoder_report()
    evil = "<script>document.title = 'owned'</script>"
    report.kept_float[0].node = report.placement[0].node = report.layers[0].node = report.model = evil
    path = tmp_path / "report.html"
    path.write_text(render(report))
    page = load(path)
    assert page.console == []
    assert "<title>owned" not in page.dom


def brightness(picture: Path) -> float:
    """Mean grey level of a PNG."""
    image = pytest.importorskip("PIL.Image")
    return float(np.asarray(image.open(picture).convert("L")).mean())
