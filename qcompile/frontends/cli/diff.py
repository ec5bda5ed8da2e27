"""`qcompile diff A B`: what changed between two models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompile.frontends.cli.options import Json
from qcompile.frontends.cli.outcome import reported


@reported
def diff_models(
    before: Annotated[Path, typer.Argument(metavar="A", help="The model before.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The model after.")],
    json_output: Json = False,
) -> None:
    """Show what was quantized, moved, fused and resized from A to B."""
    from rich.console import Console

    from qcompile.compiler.diff import diff
    from qcompile.compiler.reporting.diff_terminal import show_diff

    found = diff(before, after)
    if json_output:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show_diff(found, Console())
