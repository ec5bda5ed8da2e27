"""`qcompile ops tune`: time the kernels on this device and keep the fastest for each shape."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcompile.errors import TargetError, UsageError
from qcompile.frontends.cli.options import Json
from qcompile.frontends.cli.outcome import reported

if TYPE_CHECKING:
    from qcompile.runtime.ops.tuning import Choice, Shape


class FamilyName(StrEnum):
    """Families of operators that have several kernels."""

    W8A8 = "LinearW8A8"
    E4M3 = "LinearE4M3"


@reported
def tune_kernels(
    model: Annotated[
        Path | None, typer.Argument(metavar="[MODEL]", help="A compiled model: all of its layers.", show_default=False)
    ] = None,
    shapes: Annotated[
        list[str] | None, typer.Option("--shape", metavar="M,N,K", help="A layer y[M,N] = x[M,K] w[N,K]^T.")
    ] = None,
    family: Annotated[
        FamilyName, typer.Option(help="Of what family the layers given by --shape are.")
    ] = FamilyName.W8A8,
    rows: Annotated[
        list[int] | None, typer.Option(min=1, help="An M for the layers of MODEL; left out, 1, 2, 4, ... 8192.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Time every kernel for the layers of MODEL, or for shapes, on the GPU; sessions will run the fastest.

    Kept in the user's cache for this device, driver and build of the library. Numbers of rows are rounded up to a
    power of two.
    """
    from qcompile.frontends.cli.progress import TerminalProgress
    from qcompile.runtime.ops.places import find
    from qcompile.runtime.ops.tuning import ROWS, Shape, shapes_of, tune

    wanted = [Shape(family.value, *_sizes(text)) for text in shapes or []]
    if model is not None:
        of_model = shapes_of(model, rows or ROWS)
        if not of_model:
            raise UsageError("the model has no layer that can be tuned", where=str(model), hint=_HINT)
        wanted += of_model
    if not wanted:
        raise UsageError("nothing to tune", hint="give a compiled model, or --shape M,N,K")
    place = find()
    if place is None:
        raise TargetError("there is no library of kernels", hint="qcompile ops build --cuda")
    with TerminalProgress() as progress:
        progress.start("timing kernels", len(wanted))
        path, found = tune(place.path, wanted, lambda _choice: progress.advance())
    if json_output:
        typer.echo(json.dumps({"file": str(path), "choices": [asdict(choice) for choice in found]}, indent=2))
        return
    for choice in found:
        typer.echo(_line(choice))
    typer.echo(path)


_HINT = "layers LinearW8A8 and LinearE4M3 can; they come with --target cuda"


def _sizes(text: str) -> tuple[int, int, int]:
    """N, K, M of "M,N,K"."""
    try:
        m, n, k = (int(part) for part in text.split(","))
    except ValueError:
        m = n = k = 0
    if min(m, n, k) < 1:
        raise UsageError(f"'{text}' is no shape", hint="three numbers from 1 up: --shape 128,4096,4096")
    return n, k, m


def _line(choice: Choice) -> str:
    shape: Shape = choice.shape
    gain = choice.rule_microseconds / choice.microseconds
    told = "as before" if choice.configuration == choice.rule else f"{gain:.2f} x as fast as {choice.rule}"
    size = f"{shape.m} x {shape.n} x {shape.k}"
    return f"{shape.family} {size:20} {choice.microseconds:10.1f} us  {choice.configuration} ({told})"
