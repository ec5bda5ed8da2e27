"""`qcompile lora`: adapters merged into a model, kept beside it as files, started and listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from qcompile.frontends.cli.options import (
    Calib,
    Json,
    Overrides,
    Seed,
    Target,
    TargetName,
    Tokenizer,
    Window,
    Windows,
    calibration,
)
from qcompile.frontends.cli.outcome import reported, show_report

app = typer.Typer(no_args_is_help=True, help="LoRA adapters: merge them, keep them as inputs, start them, list them.")

_Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX model that the adapter was trained on.")]
_Folder = Annotated[Path, typer.Argument(metavar="ADAPTER", help="The folder that PEFT's save_pretrained wrote.")]
_Names = Annotated[
    list[str] | None,
    typer.Option(
        "--names",
        metavar="MODULE=LAYER",
        help="Which module is which layer where names differ: 'model.layers.{}.self_attn.q_proj=blk.{}.attn_q'.",
    ),
]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]


@app.command("merge")
@reported
def merge_adapter(
    model: _Model,
    adapter: _Folder,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where to write [MODEL.ADAPTER.onnx].")
    ] = None,
    names: _Names = None,
    overwrite: _Overwrite = False,
    json_output: Json = False,
) -> None:
    """Add ADAPTER to the weights of MODEL, a float model, which then compiles like any other, or a compiled one."""
    from qcompile.frontends import lora
    from qcompile.frontends.cli.progress import TerminalProgress

    with TerminalProgress() as progress:
        merged = lora.merge(model, adapter, output, names=names or (), overwrite=overwrite, progress=progress)
    if merged.report is not None:
        show_report(merged.report, json_output)
    elif json_output:
        typer.echo(json.dumps({"model": str(merged.model), "notices": merged.notices}, indent=2))
    else:
        typer.echo("\n".join([*merged.notices, str(merged.model)]))


@app.command("export")
@reported
def export_adapters(
    model: _Model,
    adapters: Annotated[list[Path], typer.Argument(metavar="ADAPTER...", help="Folders that PEFT wrote.")],
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="How the base is compiled [it stays float].")
    ] = None,
    calib: Calib = None,
    tokenizer: Tokenizer = None,
    window: Window = None,
    windows: Windows = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The model to write [MODEL.RECIPE.onnx].")
    ] = None,
    target: Target = TargetName.CPU,
    overrides: Overrides = None,
    seed: Seed = 0,
    names: _Names = None,
    overwrite: _Overwrite = False,
    json_output: Json = False,
) -> None:
    """Write each ADAPTER as a file for sessions to switch between, and the model that takes them as inputs.

    A MODEL that takes adapters already is left as it is.
    """
    from qcompile.frontends import lora
    from qcompile.frontends.cli.progress import TerminalProgress

    with TerminalProgress() as progress:
        made = lora.export(
            model,
            adapters,
            output,
            recipe=recipe,
            calibration=calibration(calib, tokenizer, window, windows),
            target=target.value,
            overrides=overrides or (),
            names=names or (),
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        )
    if json_output:
        report = made.compiled.report.model_dump(mode="json") if made.compiled else None
        files = [str(file) for file in made.adapters]
        typer.echo(json.dumps({"model": str(made.model), "adapters": files, "report": report}, indent=2))
        return
    if made.compiled:
        show_report(made.compiled.report, machine=False)
    for file in made.adapters:
        typer.echo(f"adapter: {file}")


@app.command("init")
@reported
def init_adapter(
    model: _Model,
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="The folder to write, as PEFT reads it.")],
    recipe: Annotated[str, typer.Option(metavar="NAME|FILE", help="What the base will be compiled with.")] = "nf4",
    rank: Annotated[int, typer.Option(min=1, metavar="R", help="Rank of the adapter.")] = 16,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The float base to write [MODEL.loftq.onnx].")
    ] = None,
    target: Target = TargetName.CPU,
    overrides: Overrides = None,
    names: _Names = None,
    overwrite: _Overwrite = False,
    json_output: Json = False,
) -> None:
    """Start the fine-tuning of a quantized MODEL where base and ADAPTER together lie near it (LoftQ)."""
    from qcompile.frontends import lora
    from qcompile.frontends.cli.progress import TerminalProgress

    with TerminalProgress() as progress:
        made = lora.init(
            model,
            adapter,
            output,
            recipe=recipe,
            rank=rank,
            target=target.value,
            overrides=overrides or (),
            names=names or (),
            overwrite=overwrite,
            progress=progress,
        )
    if json_output:
        found = {"base": str(made.base), "adapter": str(made.adapter), "notices": made.notices}
        typer.echo(json.dumps(found, indent=2))
    else:
        typer.echo("\n".join([*made.notices, f"base: {made.base}", f"adapter: {made.adapter}"]))


@app.command("list")
@reported
def list_layers(
    path: Annotated[Path, typer.Argument(metavar="MODEL|ADAPTER", help="A model, or a folder that PEFT wrote.")],
    json_output: Json = False,
) -> None:
    """List what an adapter changes, what a compiled model takes adapters for, or which layers of a model could."""
    import dataclasses

    from qcompile.frontends import lora

    found = lora.layers(path)
    if json_output:
        typer.echo(json.dumps([dataclasses.asdict(layer) for layer in found], indent=2))
        return
    width = max((len(layer.name) for layer in found), default=0)
    for layer in found:
        rank = f"  rank {layer.rank}, scale {layer.scale:g}" if layer.rank is not None else ""
        typer.echo(f"{layer.name:{width}}  {' x '.join(map(str, layer.shape))}{rank}")
