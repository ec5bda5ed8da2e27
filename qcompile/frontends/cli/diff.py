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
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write both side by side as a page.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing page.")] = False,
    json_output: Json = False,
) -> None:
    """Show what was quantized, moved, fused and resized from A to B."""
    from rich.console import Console

    from qcompile.compiler.artifact import check_output, write_text
    from qcompile.compiler.diff import diff
    from qcompile.compiler.reporting.diff_html import render_diff
    from qcompile.compiler.reporting.diff_terminal import show_diff

    if report:
        check_output(report, overwrite)
    found = diff(before, after)
    if report:
        write_text(render_diff(found), report)
    if json_output:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show_diff(found, Console())
