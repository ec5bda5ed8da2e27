"""The patterns of a difference: the same change to the same kind of operation is told once, with a count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from qcompile.compiler.diff import Change, Diff, NodeChange, NodeRef, TensorChange, TensorEvent


@dataclass(frozen=True)
class Pattern:
    """Rows with the same changes, operators and form.

    Attributes:
        example: the name of the first operation.
    """

    changes: str
    before: str
    after: str
    form: str
    rows: int
    example: str


@dataclass(frozen=True)
class TensorGroup:
    """Stored tensors that the same thing happened to."""

    event: TensorEvent
    dtypes: str
    tensors: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class Run:
    """Consecutive rows that all changed, or that all stayed."""

    changed: bool
    rows: tuple[NodeChange, ...]


def patterns(diff: Diff) -> list[Pattern]:
    """What happened, the most frequent first."""
    found: dict[tuple[str, str, str, str], list[NodeChange]] = {}
    for row in diff.nodes:
        if row.changes:
            form = row.after[0].form if row.after else ""
            key = (", ".join(row.changes), operators(row.before), operators(row.after), form)
            found.setdefault(key, []).append(row)
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return [Pattern(*key, len(rows), (rows[0].before or rows[0].after)[0].name) for key, rows in ordered]


def operators(nodes: Iterable[NodeRef]) -> str:
    """'Conv + Clip'."""
    return " + ".join(n.op_type for n in nodes)


def tensor_groups(tensors: Iterable[TensorChange]) -> list[TensorGroup]:
    """Stored tensors by event and types, the most bytes first."""
    found: dict[tuple[TensorEvent, str], list[TensorChange]] = {}
    for tensor in tensors:
        types = dict.fromkeys(t for t in (tensor.dtype_before, tensor.dtype_after) if t)
        found.setdefault((tensor.event, " → ".join(types)), []).append(tensor)
    groups = [
        TensorGroup(
            event, dtypes, len(members), sum(t.bytes_before for t in members), sum(t.bytes_after for t in members)
        )
        for (event, dtypes), members in found.items()
    ]
    return sorted(groups, key=lambda g: -max(g.bytes_before, g.bytes_after))


def runs(diff: Diff) -> list[Run]:
    """The rows in order, cut where changed and unchanged ones meet.

    Neighbours that were removed, or added, for the same reason become one row.
    """
    return [
        Run(changed, tuple(_joined(list(rows)))) for changed, rows in groupby(diff.nodes, key=lambda n: bool(n.changes))
    ]


def _joined(rows: list[NodeChange]) -> Iterator[NodeChange]:
    for (fate, detail), members in groupby(rows, key=_fate):
        changes = list(members)
        if fate is None:
            yield from changes
        else:
            before, after = [n for row in changes for n in row.before], [n for row in changes for n in row.after]
            yield NodeChange(before=before, after=after, changes=[fate], detail=detail)


def _fate(row: NodeChange) -> tuple[Change | None, str]:
    lonely = len(row.changes) == 1 and row.changes[0] in (Change.REMOVED, Change.ADDED)
    return (row.changes[0], row.detail) if lonely else (None, "")
