"""`qcompile verify MODEL --target T`: prove a model that exists already, whoever made it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompile.frontends.cli.options import Calib, Json, TargetName
from qcompile.frontends.cli.outcome import reported


@reported
def verify_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A compiled or otherwise quantized ONNX model.")],
    target: Annotated[TargetName, typer.Option(help="Where the model shall run.")],
    against: Annotated[
        Path | None, typer.Option(metavar="FLOAT", help="The float model: compares outputs and speed.")
    ] = None,
    calib: Calib = None,
    json_output: Json = False,
) -> None:
    """Prove what MODEL executes in low precision on a target and, against FLOAT, how its answers differ."""
    raise NotImplementedError
