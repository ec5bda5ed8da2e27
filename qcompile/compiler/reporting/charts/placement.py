"""The strip: every operation of the artifact in graph order, by how it computes, in rows by scope."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from qcompile.compiler.plan import Form
from qcompile.compiler.report import PlacedNode
from qcompile.compiler.reporting.wording import count, plain, shortened

CLASSES = {
    Form.FLOAT: "float", Form.INPUTS: "inputs", Form.FULL: "full", Form.PASS: "pass", Form.ROWS: "weights",
    Form.DYNAMIC: "dynamic", Form.BLOCKS: "blocks", Form.WEIGHTS: "stored", Form.ROUNDED: "stored",
}  # fmt: skip
FEWEST_ROWS, MOST_ROWS = 4, 40
MOST_LABELLED = 260
LONGEST_NARROW = 60  # characters of a row that fits beside another one


@dataclass(frozen=True)
class Cell:
    """One operation: what the strip draws and what the pointer reads."""

    op_type: str
    form: str
    tip: str
    quantizes: int
    dequantizes: int


@dataclass(frozen=True)
class Row:
    """Consecutive operations of one scope ('encoder/layer.0'); the name is empty when names have no scopes."""

    scope: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Strip:
    """The whole picture.

    Attributes:
        counts: nodes of each form, in the order of the legend.
        labelled: cells are wide enough for operator names.
        narrow: rows are short enough to stand in two columns.
        scope_width: characters of the longest scope.
    """

    rows: tuple[Row, ...]
    counts: dict[Form, int]
    quantizes: int
    dequantizes: int
    labelled: bool
    narrow: bool
    scope_width: int


def strip(nodes: Sequence[PlacedNode]) -> Strip:
    """Arrange `nodes`."""
    keys = _scopes([n.node for n in nodes])
    rows = []
    for scope, members in groupby(zip(keys, nodes, strict=True), key=lambda pair: pair[0]):
        rows.append(Row(shortened("/".join(scope), 30), tuple(_cell(node) for _, node in members)))
    return Strip(
        tuple(rows),
        {form: sum(n.form == form for n in nodes) for form in CLASSES if any(n.form == form for n in nodes)},
        sum(n.quantizes for n in nodes),
        sum(n.dequantizes for n in nodes),
        labelled=len(nodes) <= MOST_LABELLED,
        narrow=len(rows) > 1 and max(sum(len(c.op_type) + 3 for c in r.cells) for r in rows) <= LONGEST_NARROW,
        scope_width=max((len(r.scope) for r in rows), default=0),
    )


def _cell(node: PlacedNode) -> Cell:
    lines = [plain(node.node), f"{plain(node.op_type)}: {node.form}"]
    if node.quantizes:
        lines.append(f"{count(node.quantizes, 'input')} quantized just before it")
    if node.dequantizes:
        lines.append(f"{count(node.dequantizes, 'input')} dequantized just before it")
    if node.reason:
        lines.append(plain(node.reason))
    form = next((c for f, c in CLASSES.items() if f == node.form), "float")
    return Cell(plain(node.op_type), form, "\n".join(lines), node.quantizes, node.dequantizes)


def _scopes(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The scope of each name at the depth that gives the fewest rows above FEWEST_ROWS.

    Exporters write scopes as paths ('/encoder/layer.0/dense/MatMul'); where they do not, or where
    every depth gives too many rows, there is one row.
    """
    parts = [tuple(p for p in re.split(r"/", name) if p) for name in names]
    for depth in range(1, max((len(p) for p in parts), default=1)):
        keys = [p[:-1][:depth] for p in parts]
        runs = sum(1 for _ in groupby(keys))
        if runs > MOST_ROWS:
            break
        if runs >= FEWEST_ROWS:
            return keys
    return [()] * len(names)
