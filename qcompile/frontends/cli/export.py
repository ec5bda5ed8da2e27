"""`qcompile export MODEL`: the engines of this machine's GPU, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompile.errors import UsageError
from qcompile.frontends.cli.outcome import reported


@reported
def export_engines(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model compiled for TensorRT, or any other.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write [MODEL.engine.onnx].")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT=SHAPE",
            help="What engines are built for: x=8x128, or x=1x16:8x128:32x512 for least, usual and greatest.",
        ),
    ] = None,
    provider: Annotated[
        str | None, typer.Option(metavar="NAME", help="tensorrt or tensorrt-rtx [the first that loads].")
    ] = None,
    device: Annotated[int, typer.Option(min=0, metavar="N", help="Number of the GPU.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
) -> None:
    """Build MODEL's TensorRT engines for this machine's GPU into a file, which then opens at once."""
    from qcompile.frontends.export import export

    shapes = {}
    for given in shape or []:
        name, equals, text = given.partition("=")
        if not equals:
            raise UsageError(f"'{given}' is not INPUT=SHAPE", hint="--shape x=8x128")
        shapes[name] = text
    typer.echo(export(model, output, shapes=shapes, provider=provider, device=device, overwrite=overwrite))
