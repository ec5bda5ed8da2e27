"""The command line. Nothing heavy is imported here or at the top of a command's file."""

from __future__ import annotations

from typing import Annotated

import typer

import qcompile
from qcompile.frontends.cli import bench, calibrate, compile, diff, eval, export, inspect, lora, ops, recipes, verify
from qcompile.frontends.cli.dispatch import MAIN_JOB, MainJobGroup

app = typer.Typer(
    cls=MainJobGroup,
    name="qcompile",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(MAIN_JOB)(compile.compile_model)
app.command("calibrate")(calibrate.calibrate_model)
app.command("inspect")(inspect.inspect_model)
app.command("diff")(diff.diff_models)
app.command("verify")(verify.verify_model)
app.command("bench")(bench.bench_models)
app.command("eval")(eval.evaluate_model)
app.command("export")(export.export_engines)
app.add_typer(recipes.app, name="recipes")
app.add_typer(ops.app, name="ops")
app.add_typer(lora.app, name="lora")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qcompile {qcompile.__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Turn a float ONNX model into the smallest, fastest graph that still gives the same answers, and prove both.

    `qcompile MODEL --recipe int8-static --calib DATA` is the main job.
    """


def main() -> None:
    """The `qcompile` program."""
    app(prog_name="qcompile")
