"""`qcompile calibrate MODEL --calib DATA`: calibrate once, compile many times."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompile.errors import UsageError
from qcompile.frontends.cli.options import Calib, Json, TargetName
from qcompile.frontends.cli.outcome import reported


@reported
def calibrate_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The float ONNX model.", show_default=False)],
    calib: Calib = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where to write; left out, MODEL.RECIPE.qcal beside it."),
    ] = None,
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="The recipe that shall use the table.")
    ] = "int8-static",
    target: Annotated[TargetName, typer.Option(help="Where the model shall run.")] = TargetName.CPU,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="PASS.OPTION=VALUE", help="Change an option of the recipe.")
    ] = None,
    seed: Annotated[int, typer.Option(help="For everything random.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted calibration.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing table.")] = False,
    json_output: Json = False,
) -> None:
    """Write what calibration observes into a table, which --calib takes in place of the samples."""
    from qcompile.frontends import api
    from qcompile.frontends.cli.inspect import show_table
    from qcompile.frontends.cli.progress import TerminalProgress

    if calib is None:
        raise UsageError("calibration needs samples", hint="give representative inputs with --calib DATA")
    with TerminalProgress() as progress:
        path = api.calibrate(
            model,
            recipe,
            calibration=calib,
            target=target.value,
            output=output,
            overrides=overrides or (),
            seed=seed,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
        )
    show_table(path, json_output)
