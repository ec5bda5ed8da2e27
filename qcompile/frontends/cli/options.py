"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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
        "module:function, file.py:function, a calibration table (.qcal), or the word synthetic.",
    ),
]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The float ONNX model.", show_default=False)]
Target = Annotated[TargetName, typer.Option(help="Where the model shall run.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="PASS.OPTION=VALUE", help="Change an option of the recipe.")
]
Seed = Annotated[int, typer.Option(help="For everything random.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted calibration.")]
