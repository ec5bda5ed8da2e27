"""`qcompile verify MODEL --target T`: prove a model that exists already, whoever made it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcompile.errors import ProofError, UsageError
from qcompile.frontends.cli.options import Calib, Json, TargetName, Tokenizer, Window, Windows, calibration
from qcompile.frontends.cli.outcome import reported, show_report

if TYPE_CHECKING:
    from qcompile.compiler.context import Sample


@reported
def verify_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A compiled or otherwise quantized ONNX model.")],
    target: Annotated[TargetName, typer.Option(help="Where the model shall run.")],
    against: Annotated[
        Path | None, typer.Option(metavar="FLOAT", help="The float model, to compare answers and speed on DATA.")
    ] = None,
    calib: Calib = None,
    tokenizer: Tokenizer = None,
    window: Window = None,
    windows: Windows = None,
    json_output: Json = False,
) -> None:
    """Prove what MODEL runs in low precision and, against FLOAT, that its answers are the same. Exits with 3 if not."""
    from qcompile.compiler.artifact import model_bytes
    from qcompile.compiler.targets import target_named
    from qcompile.compiler.verification.prove import verify
    from qcompile.frontends.calibration_data import open_samples, split_held_out
    from qcompile.frontends.cli.progress import TerminalProgress
    from qcompile.frontends.model_checks import check_comparable
    from qcompile.frontends.model_file import load_model
    from qcompile.frontends.versions import versions

    given = calibration(calib, tokenizer, window, windows)
    if given and not against:
        raise UsageError("samples serve to compare with the float model", hint="give it with --against FLOAT")
    graph, original = load_model(model), load_model(against) if against else None
    if against and original:
        check_comparable(graph, original, against)
    with TerminalProgress() as progress:
        samples: list[Sample] = []
        if given and against and original:
            source = open_samples(given, original, against, progress=progress)
            _, samples, _ = split_held_out(source)
        report = verify(
            model,
            target_named(target.value),
            against=against,
            samples=samples,
            versions=versions(),
            progress=progress,
        )
    report.bytes_before, report.bytes_after = model_bytes(against) if against else 0, model_bytes(model)
    show_report(report, json_output)
    if report.failed:
        raise typer.Exit(ProofError.exit_code)
