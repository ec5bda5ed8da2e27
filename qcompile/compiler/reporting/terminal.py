"""The report on a terminal: the verdict first, then what a reader checks next, on one screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from qcompile.compiler.report import OutputNoise, Report
from qcompile.compiler.reporting.coded_terminal import coded_table
from qcompile.compiler.reporting.summary import float_groups, unit_groups
from qcompile.compiler.reporting.verdict import Level, verdict
from qcompile.compiler.reporting.wording import (
    cosine,
    count,
    data_size,
    decibel,
    duration,
    milliseconds,
    plain,
    shortened,
    significant,
    times,
)

_STYLE = {Level.GOOD: "green", Level.WARNING: "yellow", Level.FAILED: "red"}
_SIGN = {Level.GOOD: "✔", Level.WARNING: "▲", Level.FAILED: "✘"}
_MOST_ROWS = 6
_MOST_GAINS = 3


def show(report: Report, console: Console) -> None:
    """Print `report`; long lists are cut to what fits, the HTML page and the JSON hold them all."""
    console.print(_verdict(report))
    sections: list[tuple[str, RenderableType | None]] = [
        ("Before and after", _before_after(report)),
        ("Outputs against edited float" if report.edit else "Outputs against float", _outputs(report.outputs)),
        ("What the edit changed, in float", _edit(report)),
        ("What float layers would buy", _gains(report)),
        ("In low precision", _units(report)),
        ("Weights as codes", coded_table(report.coded) if report.coded else None),
        ("Stayed float", _kept_float(report)),
        ("Proofs", _proofs(report)),
        ("Passes", _passes(report)),
        ("Files", _files(report)),
    ]
    for title, body in sections:
        if body is not None:
            console.print(Text(title, style="bold"))
            console.print(Padding(body, (0, 0, 0, 2)))


def _verdict(report: Report) -> RenderableType:
    judged = verdict(report)
    style = _STYLE[judged.level]
    lines = [Text(f"{_SIGN[judged.level]} {judged.headline}", style=f"bold {style}")]
    lines += [Text(alarm, style=style) for alarm in judged.alarms]
    lines += [Text(f"Note: {notice}", style="yellow") for notice in judged.notices]
    samples = f"{count(report.samples, 'sample')}, {plain(report.data)}" if report.samples else "no samples"
    made = f"{plain(report.recipe)} for {plain(report.target)}".strip()
    lines.append(Text(f"{made} · {samples}", style="dim"))
    return Panel(Group(*lines), border_style=style, padding=(0, 1))


def _table(*columns: str, numbers: tuple[int, ...] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i in numbers else "left", no_wrap=i in numbers)
    return table


def _before_after(report: Report) -> RenderableType | None:
    table = _table("", "float", "compiled", "", numbers=(1, 2))
    if report.bytes_before and report.bytes_after:
        ratio = report.bytes_before / report.bytes_after
        table.add_row(
            "size", data_size(report.bytes_before), data_size(report.bytes_after), times(ratio, "smaller", "larger")
        )
    if speed := report.speed:
        table.add_row(
            "latency",
            f"{significant(speed.float_ms)} ms",
            f"{significant(speed.compiled_ms)} ms",
            Text.assemble(
                (times(speed.ratio, "faster", "SLOWER"), "" if speed.ratio >= 1 else "bold red"),
                (f"  on {speed.provider}, spread {speed.spread:.0%}", "dim"),
            ),
        )
    if report.metric_float is not None and report.metric_compiled is not None:
        change = report.metric_compiled - report.metric_float
        edited = report.edit.metric if report.edit else None
        said = f"{change:+.4f} (higher is better)"
        if edited is not None:
            said = f"{change:+.4f}, of which {edited - report.metric_float:+.4f} is the edit's (higher is better)"
        table.add_row("metric", f"{report.metric_float:.4f}", f"{report.metric_compiled:.4f}", said)
    return table if table.row_count else None


def _outputs(outputs: Sequence[OutputNoise]) -> RenderableType | None:
    if not outputs:
        return None
    table = _table("output", "SQNR", "cosine", "largest error", numbers=(1, 2, 3))
    worst = sorted(outputs, key=lambda o: o.sqnr)
    for output in worst[:_MOST_ROWS]:
        table.add_row(
            Text(shortened(output.name, 48)), decibel(output.sqnr), cosine(output.cosine), significant(output.max_error)
        )
    _mention_rest(table, len(worst), "output")
    return table


def _edit(report: Report) -> RenderableType | None:
    if report.edit is None:
        return None
    passes = Text(plain(f"by {', '.join(report.edit.passes)}"), "dim")
    table = _outputs(report.edit.outputs)
    return Group(table, passes) if table is not None else passes


def _gains(report: Report) -> RenderableType | None:
    found = report.float_gains
    if found is None or not found.proposed:
        return None
    table = _table("layer", "operator", "gain", "costs", numbers=(2, 3))
    for record in found.gains[:_MOST_GAINS]:
        table.add_row(
            Text(shortened(record.node, 48)),
            Text(plain(record.op_type)),
            f"{record.gain:+.2f} dB",
            milliseconds(record.float_ms),
        )
    measured = f"{len(found.gains)} of {count(found.units, 'layer')} measured, each in float alone"
    lines: list[RenderableType] = [table, Text(measured, "dim")]
    if found.setting:
        layers = count(len(found.proposed), "layer")
        lines.append(Text.assemble((f"{found.together:+.1f} dB with {layers} in float: ", "dim"), plain(found.setting)))
    return Group(*lines)


def _units(report: Report) -> RenderableType | None:
    groups = unit_groups(report)
    if not groups:
        return None
    table = _table("operator", "form", "units", "proved", "runs as", numbers=(2, 3))
    table.columns[1].no_wrap = True
    for group in groups[: _MOST_ROWS + 2]:
        examined = group.proved + group.refuted
        proved = Text("-", style="dim") if not examined else Text(str(group.proved), style="green")
        if group.refuted:
            proved = Text(f"{group.proved} ({group.refuted} not)", style="bold red")
        table.add_row(
            Text(plain(group.op_type)),
            Text(group.form),
            str(group.units),
            proved,
            Text(plain(", ".join(group.kernels))),
        )
    _mention_rest(table, len(groups), "group", _MOST_ROWS + 2)
    return Group(table, Text(plain(report.kernels), style="dim")) if report.kernels else table


def _kept_float(report: Report) -> RenderableType | None:
    groups = float_groups(report)
    if not groups:
        return None
    table = _table("nodes", "operators", "reason", numbers=(0,))
    table.columns[1].max_width = 30
    for group in groups[:_MOST_ROWS]:
        table.add_row(str(len(group.nodes)), Text(shortened(group.operators, 60)), Text(plain(group.reason)))
    _mention_rest(table, len(groups), "reason")
    return table


def _mention_rest(table: Table, total: int, noun: str, shown: int = _MOST_ROWS) -> None:
    if total > shown:
        table.add_row(*[""] * (len(table.columns) - 1), Text(f"… and {count(total - shown, noun)} more", style="dim"))


def _proofs(report: Report) -> RenderableType | None:
    if not report.proofs:
        return None
    table = _table("", "proof", "")
    table.show_header = False
    signs = {True: Text("✔", "green"), False: Text("✘", "bold red"), None: Text("-", "dim")}
    for proof in report.proofs:
        detail = proof.detail if proof.passed is not None else f"not tried: {proof.detail}"
        table.add_row(
            signs[proof.passed], Text(plain(proof.name)), Text(plain(detail), "red" if proof.passed is False else "dim")
        )
    return table


def _passes(report: Report) -> RenderableType | None:
    if not report.passes:
        return None
    line = Text()
    for i, record in enumerate(report.passes):
        line.append(" · " if i else "", "dim")
        line.append(plain(record.name), "" if record.modified else "dim")
        line.append(f" {duration(record.seconds)}", "cyan" if record.seconds >= 1 else "dim")
    return line


def _files(report: Report) -> RenderableType:
    lines = Text(plain(report.artifact))
    if report.page:
        lines.append(f"\n{plain(report.page)}").append("  the whole report, with pictures", "dim")
    return lines
