"""A difference on a terminal: totals, patterns of change, stored tensors."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qcompile.compiler.diff import Diff, Side
from qcompile.compiler.reporting.diff_summary import patterns, tensor_groups
from qcompile.compiler.reporting.wording import count, data_size, plain, shortened, times

_MOST_PATTERNS = 16


def show_diff(diff: Diff, console: Console) -> None:
    """Print `diff`; every single row is in its JSON and its HTML page."""
    if diff.identical:
        console.print(Text(f"✔ no difference in {count(len(diff.nodes), 'operation')}", "bold green"))
        return
    console.print(_totals(diff))
    if diff.counts:
        console.print(Text("Operations", style="bold"))
        console.print(Padding(_operations(diff), (0, 0, 0, 2)))
    if diff.tensors:
        console.print(Text("Stored tensors", style="bold"))
        console.print(Padding(_tensors(diff), (0, 0, 0, 2)))


def _totals(diff: Diff) -> Table:
    a, b = diff.before, diff.after
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for side in (a, b):
        table.add_column(Text(shortened(side.path, 44)), justify="right")
    table.add_column("")
    ratio = times(a.file_bytes / b.file_bytes, "smaller", "larger") if b.file_bytes else ""
    table.add_row("size", data_size(a.file_bytes), data_size(b.file_bytes), ratio)
    table.add_row("weights", data_size(a.weight_bytes), data_size(b.weight_bytes), "")
    table.add_row("nodes", f"{a.nodes:,}", f"{b.nodes:,}", "")
    if a.conversions or b.conversions:
        table.add_row("conversions", f"{conversions(a):,}", f"{conversions(b):,}", Text("Q and DQ nodes", "dim"))
    table.add_row("opset, IR", f"{a.opset}, {a.ir_version}", f"{b.opset}, {b.ir_version}", "")
    return table


def conversions(side: Side) -> int:
    """Number of nodes that convert to or from codes."""
    return sum(side.conversions.values())


def _operations(diff: Diff) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", justify="right")
    for title in ("change", "before", "after", "form after", "for example"):
        table.add_column(title)
    found = patterns(diff)
    for pattern in found[:_MOST_PATTERNS]:
        table.add_row(
            str(pattern.rows),
            Text(pattern.changes, "cyan"),
            Text(shortened(pattern.before, 34)),
            Text(shortened(pattern.after, 34)),
            Text(plain(pattern.form)),
            Text(shortened(pattern.example, 36), "dim"),
        )
    if len(found) > _MOST_PATTERNS:
        table.add_row("", Text(f"… and {count(len(found) - _MOST_PATTERNS, 'kind')} more", "dim"))
    table.add_row(str(diff.unchanged), Text("unchanged", "dim"))
    return table


def _tensors(diff: Diff) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", justify="right")
    for title in ("change", "type"):
        table.add_column(title)
    for title in ("before", "after"):
        table.add_column(title, justify="right")
    for group in tensor_groups(diff.tensors):
        table.add_row(
            str(group.tensors),
            Text(group.event, "cyan"),
            group.dtypes,
            data_size(group.bytes_before) if group.bytes_before else "-",
            data_size(group.bytes_after) if group.bytes_after else "-",
        )
    table.add_row(str(diff.unchanged_tensors), Text("unchanged", "dim"))
    return table
