"""Weights that are stored as codes, by format and block, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from qcompile.compiler.report import CodedWeights
from qcompile.compiler.reporting.wording import data_size


def coded_table(rows: Sequence[CodedWeights]) -> Table:
    """A line for each format and block; with several, one for all of them."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for name, justify in (("format", "left"), ("block", "right"), ("layers", "right"), ("weights", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name in ("size", "bits a weight"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in rows:
        block, note = str(row.block) if row.block else "channel", "float once loaded" if row.restored else ""
        amounts = (f"{row.layers:,}", f"{row.elements:,}", data_size(row.bytes), f"{row.bits:.2f}")
        table.add_row(row.format, block, *amounts, Text(note, "yellow"))
    if len(rows) > 1:
        elements, size = sum(row.elements for row in rows), sum(row.bytes for row in rows)
        layers = sum(row.layers for row in rows)
        table.add_row("together", "", f"{layers:,}", f"{elements:,}", data_size(size), f"{8 * size / elements:.2f}")
    return table
