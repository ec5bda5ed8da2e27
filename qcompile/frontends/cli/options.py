"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qcompile.frontends.text import Text


class TargetName(StrEnum):
    """Where the model shall run."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"


Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines on stdout.")]
Calib = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Samples: .npz, .npy or .safetensors (a file or a folder), a folder of images with preprocessing.yaml, "
        "a text (.txt, .jsonl) for a language model, module:function, file.py:function, a calibration table (.qcal), "
        "or the word synthetic.",
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The tokenizer.json for a text; left out, the one beside the model."),
]
Window = Annotated[int | None, typer.Option(metavar="TOKENS", help="Tokens in a window of the text.")]
Windows = Annotated[int | None, typer.Option(metavar="NUMBER", help="How many windows of the text, at most.")]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The float ONNX model.", show_default=False)]
Target = Annotated[TargetName, typer.Option(help="Where the model shall run.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="PASS.OPTION=VALUE", help="Change an option of the recipe.")
]
Seed = Annotated[int, typer.Option(help="For everything random.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted calibration.")]


def calibration(data: str | None, tokenizer: Path | None, window: int | None, windows: int | None) -> str | Text | None:
    """What --calib gives, as a text where the options of one are given.

    Raises:
        UsageError: these options without a text.
    """
    if tokenizer is None and window is None and windows is None:
        return data
    from qcompile.errors import UsageError
    from qcompile.frontends.text import Text, is_text

    if data is None or not is_text(Path(data)):
        raise UsageError(
            "--tokenizer, --window and --windows say how to read a text",
            where=data or "",
            hint="give a .txt or .jsonl file, or a folder of them, with --calib",
        )
    return Text(data, tokenizer, window, windows)
