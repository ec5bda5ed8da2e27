"""`qcompile bench MODEL`: time models on the provider they would run on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcompile.errors import TargetError, UsageError
from qcompile.frontends.cli.options import Calib, Json, TargetName, Tokenizer, Window, Windows, calibration
from qcompile.frontends.cli.outcome import reported

if TYPE_CHECKING:
    from qcompile.frontends.text import Text
    from qcompile.runtime.benchmark.results import Point


@reported
def bench_models(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Any ONNX model, float or compiled.")],
    against: Annotated[
        list[Path] | None, typer.Option(metavar="OTHER", help="Time this model too, in turns; as often as you like.")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="SIZES", help="Samples in one run, such as 1,8,32; the sample is repeated.")
    ] = None,
    sequence: Annotated[
        str | None,
        typer.Option(metavar="LENGTHS", help="Tokens of each sample; with a cache both phases, prefill and decode."),
    ] = None,
    calib: Calib = None,
    tokenizer: Tokenizer = None,
    window: Window = None,
    windows: Windows = None,
    target: Annotated[
        TargetName | None, typer.Option(help="Where to run; left out, on the best provider for MODEL.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each session on the CPU; left out, one per core.")
    ] = None,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="Replay CUDA graphs; inputs are then copied from the host.")
    ] = False,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw what was found.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the picture if there is one.")] = False,
    json_output: Json = False,
) -> None:
    """Time MODEL in turns with each OTHER, and count its work, beside what this device can do at best.

    The first sample of DATA is the input, else a made-up one.
    """
    from qcompile.compiler.artifact import check_output, write_text
    from qcompile.compiler.reporting.charts.benchmark import benchmark_chart
    from qcompile.frontends.cli.progress import TerminalProgress
    from qcompile.runtime.benchmark.bench import bench
    from qcompile.runtime.providers import CUDA

    if picture is not None:
        check_output(picture, overwrite)
    models = [model, *(against or [])]
    given = calibration(calib, tokenizer, window, windows)
    points = inputs_of(models, given, sizes("--batch", batch), sizes("--sequence", sequence))
    provider, why = provider_of(model, points[0], target)
    if cuda_graphs and provider != CUDA:
        raise TargetError(f"there are CUDA graphs on {CUDA} alone; {why}", where=str(model))
    with TerminalProgress() as progress:
        progress.start("Measuring", len(models) + 1 + len(points))
        found = bench(
            models,
            points,
            provider,
            why=why,
            threads=threads or 0,
            cuda_graphs=cuda_graphs,
            advance=progress.advance,
        )
    if picture is not None:
        write_text(benchmark_chart(found), picture)
    if json_output:
        typer.echo(json.dumps(found.data() | {"inputs": calib or "made up"}, indent=2))
        return
    from rich.console import Console

    from qcompile.compiler.reporting.bench_terminal import show_benchmark

    show_benchmark(found, "made up" if calib is None else f"the first of {calib}", Console())


def sizes(option: str, text: str | None) -> list[int]:
    """The numbers of "1,8,32"."""
    try:
        found = [int(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        found = [0]
    if any(size < 1 for size in found):
        raise UsageError(f"'{text}' are no sizes", hint=f"numbers from 1 up, separated by commas: {option} 1,8,32")
    return found


def inputs_of(models: list[Path], given: str | Text | None, batches: list[int], sequences: list[int]) -> list[Point]:
    """What all models are run on.

    A model with a cache of codes takes the sample of the float model that it was made from, so samples are read, or
    made up, for the last model without one.

    Raises:
        DataError: the models do not take the same inputs.
    """
    from qcompile.compiler.inputs import model_inputs
    from qcompile.frontends.calibration_data import open_samples
    from qcompile.frontends.model_file import load_model
    from qcompile.frontends.samples.check import check_sample
    from qcompile.frontends.samples.sizes import points
    from qcompile.runtime.kv_cache import CacheCodes

    fed = next((path for path in reversed(models) if not CacheCodes.of(path).entries), models[0])
    graph = load_model(fed)
    sample = next(iter(open_samples(given, graph, fed))) if given else None
    found = points(graph, fed, sample, batches, sequences)
    for path in models:
        inputs = model_inputs(load_model(path) if path != fed else graph)
        for point in found:
            check_sample(CacheCodes.of(path).encode(point.sample), inputs, str(path))
    return found


def provider_of(model: Path, point: Point, target: TargetName | None) -> tuple[str, str]:
    """Where a session would run the model, and why.

    Raises:
        TargetError: on the CPU, though `target` is a GPU.
    """
    from qcompile.runtime.kv_cache import CacheCodes
    from qcompile.runtime.providers import CPU
    from qcompile.runtime.session import Session

    session = Session(model, None if target is None else [target.value])
    if target not in (None, TargetName.CPU) and session.provider == CPU:
        raise TargetError(session.why, where=str(model), hint="leave out --target to measure on the CPU")
    session(CacheCodes.of(model).encode(point.sample))
    return session.provider, session.why
