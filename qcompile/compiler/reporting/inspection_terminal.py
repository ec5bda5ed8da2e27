"""An inspection on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qcompile.compiler.inspection import Coverage, Inspection, ValueInfo
from qcompile.compiler.reporting.coded_terminal import coded_table
from qcompile.compiler.reporting.wording import count, data_size, plain, shortened

_MOST_OPERATORS = 24
_MOST_VALUES = 8
_MOST_OBSTACLES = 4


def show_inspection(found: Inspection, console: Console) -> None:
    """Print `found` on about one screen; its JSON holds every detail."""
    console.print(Text(plain(found.path), "bold"), Text(data_size(found.file_bytes), "cyan"))
    used = {"ai.onnx", *(o.op_type.rpartition("::")[0] for o in found.operators)}
    opsets = ", ".join(f"{plain(domain)} {version}" for domain, version in found.opsets.items() if domain in used)
    line = f"opset {opsets} · IR {found.ir_version}" + (f" · made by {plain(found.producer)}" if found.producer else "")
    console.print(Padding(Text(line, "dim"), (0, 0, 0, 2)))
    if found.manifest:
        console.print(Padding(Text(_compiled_by(found.manifest), "green"), (0, 0, 0, 2)))
    _section(console, "Inputs and outputs", _values(found))
    _section(console, _nodes_title(found), _operators(found))
    _section(console, f"Stored: {count(found.parameters, 'parameter')}", _stored(found))
    if found.coded:
        _section(console, "Weights as codes", coded_table(found.coded))
    if unknown := found.unknown_shapes:
        names = ", ".join(shortened(n, 40) for n in unknown[:4]) + (", …" if len(unknown) > 4 else "")
        console.print(Text(f"Shape unknown: {count(len(unknown), 'value')} ({names})", "yellow"))
    if found.manifest:
        return
    if found.conversions:
        console.print(Text(f"Quantized already: {count(found.conversions, 'conversion')} to or from codes", "yellow"))
    else:
        _section(console, "Could run in int8", _coverage(found.coverage))


def _section(console: Console, title: str, body: Table | Text) -> None:
    console.print(Text(title, style="bold"))
    console.print(Padding(body, (0, 0, 0, 2)))


def _compiled_by(manifest: dict[str, Any]) -> str:
    recipe = manifest.get("recipe")
    name = recipe.get("name", "?") if isinstance(recipe, dict) else recipe
    return f"compiled by qcompile: recipe {plain(str(name))} for {plain(str(manifest.get('target', '?')))}"


def _grid(*titles: str, right: tuple[int, ...] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for i, title in enumerate(titles):
        table.add_column(title, justify="right" if i in right else "left")
    return table


def _values(found: Inspection) -> Table:
    table = _grid("", "name", "type", "dims")
    for kind, values in (("in", found.inputs), ("out", found.outputs)):
        for value in values[:_MOST_VALUES]:
            table.add_row(Text(kind, "dim"), Text(shortened(value.name, 50)), value.dtype, _dims(value))
        if len(values) > _MOST_VALUES:
            table.add_row("", Text(f"… and {len(values) - _MOST_VALUES} more", "dim"))
    return table


def _dims(value: ValueInfo) -> Text:
    if value.dims is None:
        return Text("unknown rank", "yellow")
    text = Text()
    for i, dim in enumerate(value.dims):
        text.append(" x " if i else "", "dim").append(plain(dim), "magenta" if dim in value.dynamic else "")
    return text or Text("scalar")


def _nodes_title(found: Inspection) -> str:
    parts = [count(found.nodes, "node")]
    if found.bodies:
        parts.append(f"bodies of control flow: {found.bodies}")
    if found.functions:
        parts.append(count(len(found.functions), "local function"))
    return ", ".join(parts)


def _operators(found: Inspection) -> Text:
    line = Text()
    for i, operator in enumerate(found.operators[:_MOST_OPERATORS]):
        line.append(" · " if i else "", "dim").append(plain(operator.op_type)).append(f" {operator.nodes}", "cyan")
        if operator.in_bodies:
            line.append(f" ({operator.in_bodies} in bodies)", "dim")
    rest = len(found.operators) - _MOST_OPERATORS
    return line.append(f" … and {count(rest, 'operator')} more", "dim") if rest > 0 else line


def _stored(found: Inspection) -> Table:
    table = _grid("type", "tensors", "elements", "size", "", right=(1, 2, 3))
    for row in found.stored:
        table.add_row(row.dtype, f"{row.tensors:,}", f"{row.elements:,}", data_size(row.bytes))
    for file in found.external:
        state = Text("missing, or outside the model's folder", "bold red") if not file.present else Text("")
        table.add_row(Text(f"in {shortened(file.location, 40)}"), f"{file.tensors:,}", "", data_size(file.bytes), state)
    return table


def _coverage(coverage: Sequence[Coverage]) -> Table:
    table = _grid("target", "operations", "what keeps others float", right=(1,))
    for row in coverage:
        reasons = [f"{n} {plain(reason)}" for reason, n in row.obstacles.items()]
        rest = len(reasons) - _MOST_OBSTACLES
        text = "; ".join(reasons[:_MOST_OBSTACLES]) + (f"; … and {count(rest, 'reason')} more" if rest > 0 else "")
        table.add_row(row.target, f"{row.quantizable} of {row.nodes}", Text(text, "dim"))
    return table
