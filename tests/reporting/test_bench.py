"""A benchmark as a table and as a picture."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from rich.console import Console

from qcompile.compiler.reporting.bench_terminal import show_benchmark
from qcompile.compiler.reporting.charts.benchmark import benchmark_chart
from qcompile.runtime.benchmark.results import Benchmark, Row

SVG = "{http://www.w3.org/2000/svg}"


def row(model: str, batch: int, ms: float, faster: float | None = None) -> Row:
    """1 GFLOP and 100 MB for each token of a prompt of ten."""
    tokens = 10 * batch
    return Row(
        model=model, batch=batch, sequence=10, phase="prefill", shapes={"input_ids": [batch, 10]}, milliseconds=ms,
        spread=0.1, per_second=tokens / ms * 1e3, operations={"int8": tokens * 1e9}, bytes=tokens * 1e8,
        gflops=tokens / ms * 1e3, gbytes=tokens / ms * 100, of_products=tokens / ms / 10, of_copy=tokens / ms,
        times_faster=faster, times_faster_spread=None if faster is None else 0.08,
    )  # fmt: skip


FOUND = Benchmark(
    "CPUExecutionProvider",
    "asked for",
    "a processor",
    2,
    False,
    "tokens",
    {"int8": 10_000.0},
    100.0,
    [
        row("models/int8.onnx", 1, 20.0),
        row("models/float<1>.onnx", 1, 50.0, 2.5),
        row("models/int8.onnx", 8, 150.0),
        row("models/float<1>.onnx", 8, 120.0, 0.8),
    ],
)


def shown(found: Benchmark, width: int = 100) -> str:
    out = io.StringIO()
    show_benchmark(found, "made up", Console(file=out, width=width))
    return out.getvalue()


def test_a_line_for_each_model_at_each_size() -> None:
    text = shown(FOUND)
    lines = [line.split() for line in text.splitlines()]
    assert "batch 8, prefill of 10 tokens" in text
    assert ["int8.onnx", "20.0", "±", "5%", "500", "500", "5%", "50.0", "50%"] in lines
    assert ["float<1>.onnx", "50.0", "±", "5%", "200", "200", "2%", "20.0", "20%", "2.50x", "faster", "±4%"] in lines
    assert "1.25x SLOWER" in text
    assert "10000 GFLOP/s in products of int8" in text.replace("\n  ", "")


def test_it_fits_a_narrow_terminal() -> None:
    assert max(map(len, shown(FOUND, 80).splitlines())) <= 80
    assert "float<1>.onnx" in shown(FOUND, 80)


def test_one_model_alone_is_compared_with_nothing() -> None:
    assert "faster" not in shown(replace(FOUND, rows=[FOUND.rows[0]]))


def test_files_of_one_name_are_told_apart() -> None:
    alike = replace(FOUND, rows=[row("a/m.onnx", 1, 20.0), row("b/m.onnx", 1, 50.0, 2.5)])
    assert "a/m.onnx" in shown(alike)
    assert "b/m.onnx" in shown(alike)


def test_an_unknown_share_is_a_dash() -> None:
    assert " 500    - " in shown(replace(FOUND, rows=[replace(FOUND.rows[0], of_products=None)]))


def test_bars_are_as_long_as_times() -> None:
    root = ElementTree.fromstring(benchmark_chart(FOUND))
    bars = [r for r in root.iter(f"{SVG}rect") if r.get("height") == "14"]
    lengths = [float(bar.get("width", 0)) for bar in bars]
    assert lengths[1] / lengths[0] == pytest.approx(50 / 20, rel=1e-2)
    assert lengths[2] / lengths[3] == pytest.approx(150 / 120, rel=1e-2)
    assert [bar.get("class") for bar in bars] == ["model-0", "model-1"] * 2


def test_the_roof_is_where_the_ceilings_are() -> None:
    """The ridge lies at 10000 / 100 = 100 operations a byte; rows at 10, one and more decades below the roof."""
    root = ElementTree.fromstring(benchmark_chart(FOUND))
    (roof,) = [p.get("d", "") for p in root.iter(f"{SVG}path")]
    points = [tuple(map(float, pair.split())) for pair in re.findall(r"[\d.]+ [\d.]+", roof)]
    marks = [(float(c.get("cx", 0)), float(c.get("cy", 0))) for c in root.iter(f"{SVG}circle")]
    (start, low), (ridge, top), _ = points
    decade = ridge - start  # from 10 to 100 operations a byte
    assert all(x == pytest.approx(start, abs=0.1) for x, _ in marks)
    assert decade > 0
    height = (low - top) / math.log10(10_000 / 1000)
    assert marks[0][1] - top == pytest.approx(height * math.log10(10_000 / 500), abs=0.5)


def test_names_are_escaped_and_the_picture_stands_alone() -> None:
    text = benchmark_chart(FOUND)
    assert "float&lt;1&gt;.onnx" in text
    assert text.startswith("<svg")
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "prefers-color-scheme: dark" in text


def test_work_that_nobody_counts_has_no_roof() -> None:
    bare = replace(FOUND.rows[0], operations={}, gflops=0.0, of_products=None)
    root = ElementTree.fromstring(benchmark_chart(replace(FOUND, rows=[bare])))
    assert not list(root.iter(f"{SVG}circle"))
