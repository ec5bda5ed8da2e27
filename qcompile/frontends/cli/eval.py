"""`qcompile eval MODEL --text FILE`: perplexity of a language model, and how close it stays to the float one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcompile.frontends.cli.options import Json, Tokenizer, Window, Windows
from qcompile.frontends.cli.outcome import reported

if TYPE_CHECKING:
    from qcompile.frontends.evaluation import Evaluation


@reported
def evaluate_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A decoder, float or compiled.", show_default=False)],
    text: Annotated[
        Path, typer.Option(metavar="FILE", help="A text that calibration did not see: .txt, .jsonl, or a folder.")
    ],
    tokenizer: Tokenizer = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="FLOAT", help="The float model, to compare what both foresee.")
    ] = None,
    window: Window = None,
    windows: Windows = None,
    stride: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", help="From one window to the next; left out, they lie side by side."),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", help="Read by one run, the others come from the cache; left out, the window."),
    ] = None,
    json_output: Json = False,
) -> None:
    """Perplexity of MODEL on a text; against FLOAT also next-token agreement and divergence."""
    from qcompile.frontends.cli.progress import TerminalProgress
    from qcompile.frontends.evaluation import evaluate
    from qcompile.frontends.text import Text

    with TerminalProgress() as progress:
        found = evaluate(
            model,
            Text(text, tokenizer, window, windows),
            reference=reference,
            stride=stride,
            step=step,
            progress=progress,
        )
    if json_output:
        typer.echo(json.dumps({"model": str(model)} | asdict(found), indent=2))
    else:
        typer.echo("\n".join(_lines(found)))


def _lines(found: Evaluation) -> list[str]:
    lines = [f"{found.perplexity:12.3f}  perplexity"]
    if found.reference_perplexity is not None:
        more = found.perplexity / found.reference_perplexity - 1
        lines += [
            f"{found.reference_perplexity:12.3f}  of the float model ({more:+.1%})",
            f"{found.agreement:12.2%}  next tokens agree",
            f"{found.divergence:12.4f}  nats of divergence from the float model",
        ]
    lines.append(f"{found.tokens_per_second:12.0f}  tokens a second, {found.step} a run")
    apart = "" if found.stride == found.window else f", {found.stride} apart"
    lines.append(
        f"on {found.provider}; {found.tokens} tokens judged in {found.windows} windows of {found.window}{apart}"
    )
    return lines
