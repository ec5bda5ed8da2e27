"""Weights as codes in the report: format, block, size and bits a weight."""

from __future__ import annotations

import io
from pathlib import Path

import onnx_ir as ir
from made_up import encoder_report
from rich.console import Console

import qcompile
from qcompile.compiler.report import CodedWeights
from qcompile.compiler.reporting.html import render
from qcompile.compiler.reporting.terminal import show
from tests.passes.harness import model_of
from tests.passes.int8 import head, normal

ROWS = [
    CodedWeights(format="int4", block=32, layers=210, elements=1_000_000, bytes=562_500, restored=False),
    CodedWeights(format="nf4", block=None, layers=1, elements=1_000_000, bytes=500_000, restored=True),
]


def test_terminal_and_page_show_bits_and_size() -> None:
    report = encoder_report().model_copy(update={"coded": ROWS})
    out = io.StringIO()
    show(report, Console(file=out, width=110))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["int4", "32", "210", "1,000,000", "562", "kB", "4.50"] in lines
    assert ["together", "211", "2,000,000", "1.06", "MB", "4.25"] in lines
    page = render(report)
    assert "<td>int4</td><td>32</td>" in page
    assert "float once loaded" in page


def test_a_compilation_fills_it_in(tmp_path: Path) -> None:
    text = head(21) + "g (float[6,64] x) => (float[6,32] y) { h = MatMul (x, w) k = Relu (h) y = MatMul (k, v) }"
    model = model_of(text, {"w": normal(64, 64), "v": normal(64, 32)})
    ir.save(model, tmp_path / "m.onnx")
    entries = "place-weights.layers=[{name: MatMul_2, format: int8}]"
    report = qcompile.compile(tmp_path / "m.onnx", "int4-rtn", overrides=[entries]).report
    assert [(r.format, r.block, r.layers, r.bits) for r in report.coded] == [
        ("uint4", 32, 1, 4.625),
        ("int8", 32, 1, 8.5),
    ]
