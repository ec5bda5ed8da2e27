"""`qcompile MODEL`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompile.errors import ProofError
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
from qcompile.frontends.cli.outcome import reported, show_error, show_report
from qcompile.runtime.device import Device


@reported
def compile_model(
    model: Model,
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="What to do: see `qcompile recipes`.")
    ] = "int8-static",
    calib: Calib = None,
    tokenizer: Tokenizer = None,
    window: Window = None,
    windows: Windows = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where to write; left out, MODEL.RECIPE.onnx beside it."),
    ] = None,
    target: Target = TargetName.CPU,
    overrides: Overrides = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as a page (.html) or as data (.json).")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 when a proof fails.")] = False,
    metric: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Your own measure of quality, higher is better.")
    ] = None,
    seed: Seed = 0,
    device: Annotated[
        Device,
        typer.Option(help="Where calibration and methods that solve for weights run; cuda needs torch and a GPU."),
    ] = Device.CPU,
    autotune: Annotated[
        bool, typer.Option("--autotune", help="Measure operations on this machine, and use int8 where it pays here.")
    ] = False,
    tuning: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Autotune with the times in FILE; it is made, or added to on its machine."),
    ] = None,
    resume: Resume = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output and report.")] = False,
    json_output: Json = False,
) -> None:
    """Compile MODEL, prove the result, and report."""
    from qcompile.frontends import api
    from qcompile.frontends.cli.progress import TerminalProgress

    with TerminalProgress() as progress:
        artifact = api.compile(
            model,
            recipe,
            calibration=calibration(calib, tokenizer, window, windows),
            target=target.value,
            output=output,
            overrides=overrides or (),
            report=report,
            metric=metric,
            seed=seed,
            device=device.value,
            autotune=autotune,
            tuning=tuning,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
        )
    show_report(artifact.report, json_output)
    if strict and (failed := api.failures(artifact.report)):
        error = ProofError("; ".join(failed), where=str(artifact.path), hint="the artifact was written all the same")
        if not json_output:
            show_error(error, machine=False)
        raise typer.Exit(error.exit_code)
