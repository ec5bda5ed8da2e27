"""`qcompile ops build`, `status` and `tune`: the library of kernels for the operators of domain `qcompile`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from qcompile.frontends.cli import ops_tune
from qcompile.frontends.cli.options import Json
from qcompile.frontends.cli.outcome import reported

app = typer.Typer(no_args_is_help=True, help="Build, look at and tune the library of kernels.")
app.command("tune")(ops_tune.tune_kernels)


@app.command("build")
@reported
def build_library(
    cuda: Annotated[
        bool | None, typer.Option("--cuda/--no-cuda", help="With CUDA kernels; by default if nvcc is there.")
    ] = None,
    ort_headers: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with onnxruntime_c_api.h; by default searched for.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Compilers at work at the same time.")] = None,
) -> None:
    """Build the library of kernels into the user's cache and print its path; with CUDA this takes minutes."""
    from qcompile.frontends.cli.progress import TerminalProgress
    from qcompile.runtime.ops.build import build
    from qcompile.runtime.ops.tools import find_tools

    tools = find_tools(cuda, ort_headers)
    with TerminalProgress() as progress:
        shown = 0

        def step(done: int, all_steps: int) -> None:
            nonlocal shown
            if not shown:
                progress.start("building kernels", all_steps)
            progress.advance(done - shown)
            shown = done

        path = build(tools, jobs, step)
    typer.echo(path)


@app.command("status")
@reported
def show_status(json_output: Json = False) -> None:
    """Say which library is used, what is inside, and whether it loads."""
    from qcompile.errors import TargetError
    from qcompile.runtime.ops.library import open_library
    from qcompile.runtime.ops.places import find, why_none

    place = find()
    if place is None:
        found: dict[str, Any] = {"library": None, "loads": False, "why": why_none()}
    else:
        found = {"library": str(place.path), "found": place.origin}
        try:
            library = open_library(place.path)
        except TargetError as error:
            found |= {"loads": False, "why": error.what}
        else:
            found |= {"loads": True, "onnxruntime": f"1.{library.onnxruntime}", "cuda": library.cuda or None}
            found |= {"architectures": list(library.architectures)}
            found |= {"operators": {provider: sorted(names) for provider, names in library.operators.items()}}
    if json_output:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        typer.echo(f"{name:13}  {_line(name, value)}")


def _line(name: str, value: Any) -> str:
    if name == "operators":
        return ", ".join(f"{len(names)} on {provider}" for provider, names in value.items())
    if isinstance(value, list):
        return " ".join(value) or "none"
    return {None: "none", True: "yes", False: "no"}.get(value, str(value))
