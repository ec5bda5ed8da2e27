"""`qcompile bench MODEL`: time models on the provider they would run on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from qcompile.frontends.cli.options import Calib, Json, Tokenizer, Window, Windows, calibration
from qcompile.frontends.cli.outcome import reported


@reported
def bench_models(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Any ONNX model, float or compiled.")],
    against: Annotated[Path | None, typer.Option(metavar="OTHER", help="Time this model too, in turns.")] = None,
    calib: Calib = None,
    tokenizer: Tokenizer = None,
    window: Window = None,
    windows: Windows = None,
    json_output: Json = False,
) -> None:
    """Time MODEL for a few seconds, in turns with OTHER; the first sample of DATA is the input, else a made-up one."""
    from qcompile.compiler.inputs import model_inputs
    from qcompile.frontends.calibration_data import open_samples
    from qcompile.frontends.model_file import load_model
    from qcompile.frontends.samples.check import check_sample
    from qcompile.runtime.benchmark import interleaved, ratio
    from qcompile.runtime.kv_cache import CacheCodes
    from qcompile.runtime.session import Session

    given, fed = calibration(calib, tokenizer, window, windows), against or model
    sample = next(iter(open_samples(given or "synthetic", load_model(fed), fed)))
    paths, own = {"model": model}, CacheCodes.of(model).encode(sample)
    if against:
        check_sample(own, model_inputs(load_model(model)), str(model))
        paths["against"] = against
    session = Session(model)
    session(own)
    provider, why = session.provider, session.why
    del session
    timings = interleaved(paths, sample, provider)
    found: dict[str, Any] = {
        "provider": provider,
        "why": why,
        "shapes": {name: list(array.shape) for name, array in sample.items()},
        "milliseconds": {str(paths[name]): round(t.median, 4) for name, t in timings.items()},
    }
    if against:
        times_faster, spread = ratio(timings["against"], timings["model"])
        found |= {"ratio": round(times_faster, 3), "spread": round(spread, 3)}
    if json_output:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, path in paths.items():
        typer.echo(f"{timings[name].median:10.3f} ms  {path}")
    if against:
        word = "faster" if times_faster >= 1 else "SLOWER"
        factor = times_faster if times_faster >= 1 else 1 / times_faster
        typer.echo(f"{factor:10.2f} x {word} than {against.name} (spread {spread:.0%})")
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in sample.items())
    typer.echo(f"on {provider}; median of interleaved turns; inputs {shapes}{'' if calib else ', made up'}")
