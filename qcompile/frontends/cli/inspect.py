"""`qcompile inspect FILE`: what is in a model or in a calibration table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompile.frontends.cli.options import Json
from qcompile.frontends.cli.outcome import reported


@reported
def inspect_model(
    model: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Any ONNX model, float or compiled, or a calibration table (.qcal)."),
    ],
    json_output: Json = False,
) -> None:
    """Show what is in a model: inputs, operators, sizes, and how it was compiled; or in a calibration table."""
    if model.suffix == ".qcal":
        show_table(model, json_output)
        return
    from rich.console import Console

    from qcompile.compiler.inspection import inspect
    from qcompile.compiler.reporting.inspection_terminal import show_inspection

    found = inspect(model)
    if json_output:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show_inspection(found, Console())


def show_table(path: Path, json_output: bool) -> None:
    """The calibration table at `path`, on the terminal or as JSON."""
    from rich.console import Console

    from qcompile.compiler.reporting.calibration_terminal import inspect_table, show_calibration

    found = inspect_table(path)
    if json_output:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show_calibration(found, Console())
