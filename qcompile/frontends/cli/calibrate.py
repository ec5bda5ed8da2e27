"""`qcompile calibrate MODEL --calib DATA`: calibrate once, compile many times."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompile.errors import UsageError
from qcompile.frontends.cli.options import (
    Calib,
    Json,
    Model,
    Overrides,
    Resume,
    Seed,
    Target,
    TargetName,
    Tokenizer,
    Window,
    Windows,
    calibration,
)
from qcompile.frontends.cli.outcome import reported


@reported
def calibrate_model(
    model: Model,
    calib: Calib = None,
    tokenizer: Tokenizer = None,
    window: Window = None,
    windows: Windows = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where to write; left out, MODEL.RECIPE.qcal beside it."),
    ] = None,
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="The recipe that shall use the table.")
    ] = "int8-static",
    target: Target = TargetName.CPU,
    overrides: Overrides = None,
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing table.")] = False,
    json_output: Json = False,
) -> None:
    """Write what calibration observes into a table, which --calib takes in place of the samples."""
    from qcompile.frontends import api
    from qcompile.frontends.cli.inspect import show_table
    from qcompile.frontends.cli.progress import TerminalProgress

    given = calibration(calib, tokenizer, window, windows)
    if given is None:
        raise UsageError("calibration needs samples", hint="give representative inputs with --calib DATA")
    with TerminalProgress() as progress:
        path = api.calibrate(
            model,
            recipe,
            calibration=given,
            target=target.value,
            output=output,
            overrides=overrides or (),
            seed=seed,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
        )
    show_table(path, json_output)
