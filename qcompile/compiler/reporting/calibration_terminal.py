"""A calibration table in words: which tensors were observed, their ranges, and the clips that were chosen."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qcompile.compiler.calibration_table import CalibrationTable, Run
from qcompile.compiler.reporting.wording import count, plain
from qcompile.compiler.statistics import RANGE
from qcompile.errors import DataError


class ObservedTensor(BaseModel):
    """One tensor; the clip is None where its values are not finite."""

    name: str
    low: float
    high: float
    mean_magnitude: float
    elements: float
    clip: tuple[float, float] | None
    method: str | None


class CalibrationRun(BaseModel):
    """What one step `calibrate` of the recipe observed.

    Attributes:
        spec: the format that the clips were chosen for.
        statistics: the kinds of statistics that are stored.
    """

    samples: int
    spec: str
    statistics: list[str]
    tensors: list[ObservedTensor]
    never_computed: list[str]


class TableInspection(BaseModel):
    """A calibration table."""

    path: str
    model: str
    recipe: str
    data: str
    digest: str
    samples: int
    synthetic: bool
    held_out: int
    runs: list[CalibrationRun]


def inspect_table(path: Path) -> TableInspection:
    """Read a calibration table.

    Raises:
        DataError: there is none, or a damaged one.
    """
    if not path.is_file():
        raise DataError("no such file", where=str(path))
    table = CalibrationTable.load(path)
    return TableInspection(
        path=str(path),
        model=table.model,
        recipe=table.recipe,
        data=table.description,
        digest=table.digest,
        samples=table.samples,
        synthetic=table.synthetic,
        held_out=len(table.held_out),
        runs=[_run(run) for run in table.runs.values()],
    )


def _run(run: Run) -> CalibrationRun:
    statistics, tensors, never = run.statistics, [], []
    for name in sorted(statistics.vectors.get(RANGE.kind, {})):
        seen, clip = statistics.range_of(name), run.clips.get(name)
        if seen is None:
            never.append(name)
            continue
        tensors.append(
            ObservedTensor(
                name=name,
                low=seen.low,
                high=seen.high,
                mean_magnitude=seen.mean_magnitude,
                elements=seen.elements,
                clip=(clip.low, clip.high) if clip else None,
                method=clip.method if clip else None,
            )
        )
    return CalibrationRun(
        samples=statistics.samples,
        spec=run.spec,
        statistics=sorted(statistics.vectors),
        tensors=tensors,
        never_computed=never,
    )


def show_calibration(found: TableInspection, console: Console) -> None:
    """Print every tensor with its range and its clip."""
    console.print(
        Text(plain(found.path), "bold"), Text(f"for {plain(found.model)}, recipe {plain(found.recipe)}", "cyan")
    )
    made_up = ", made up: they say nothing of real data" if found.synthetic else ""
    held_out = f"{count(found.held_out, 'sample')} for the proofs"
    console.print(
        Padding(
            Text(f"{count(found.samples, 'sample')} ({plain(found.data)}{made_up}), {held_out}", "dim"), (0, 0, 0, 2)
        )
    )
    for run in found.runs:
        console.print(Text(f"{count(len(run.tensors), 'tensor')} as {run.spec}", "bold"))
        console.print(Padding(_tensors(run), (0, 0, 0, 2)))
        if run.never_computed:
            console.print(Text(f"never computed: {', '.join(map(plain, run.never_computed))}", "yellow"))


def _tensors(run: CalibrationRun) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="dim")
    shown.add_column("tensor", overflow="fold")
    for title in ("low", "high", "mean |x|", "clip low", "clip high"):
        shown.add_column(title, justify="right", no_wrap=True)
    shown.add_column("by", no_wrap=True)
    for tensor in run.tensors:
        numbers = [tensor.low, tensor.high, tensor.mean_magnitude, *(tensor.clip or ())]
        cells = [f"{number:.4g}" for number in numbers] + ([] if tensor.clip else ["", ""])
        shown.add_row(plain(tensor.name), *cells, tensor.method or "")
    return shown
