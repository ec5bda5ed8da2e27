"""`qcompile inspect MODEL`: what is in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompile.frontends.cli.options import Json
from qcompile.frontends.cli.outcome import reported


@reported
def inspect_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Any ONNX model, float or compiled.")],
    json_output: Json = False,
) -> None:
    """Show what is in a model: inputs, operators, sizes, and how it was compiled."""
    from rich.console import Console

    from qcompile.compiler.inspection import inspect
    from qcompile.compiler.reporting.inspection_terminal import show_inspection

    found = inspect(model)
    if json_output:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show_inspection(found, Console())
