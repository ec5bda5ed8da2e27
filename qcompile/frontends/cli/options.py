"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
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
