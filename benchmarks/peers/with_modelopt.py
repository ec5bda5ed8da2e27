"""ModelOpt's int8 of an ONNX model, on the CPU: with_modelopt.py MODEL SAMPLES OUT int8

What is not int8 stays float32: its default, float16, is for GPUs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from modelopt.onnx.quantization import quantize
from onnxruntime.quantization import CalibrationDataReader


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.rewind()

    def get_next(self) -> dict[str, np.ndarray] | None:
        file = next(self.files, None)
        return dict(np.load(file)) if file else None

    def get_first(self) -> dict[str, np.ndarray]:
        return dict(np.load(min(self.folder.glob("*.npz"))))

    def rewind(self) -> None:
        self.files = iter(sorted(self.folder.glob("*.npz")))


def main(model: str, samples: str, out: str, mode: str) -> None:
    start = time.perf_counter()
    quantize(
        model,
        mode,
        calibration_data_reader=Reader(samples),
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=out,
    )
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main(*sys.argv[1:])
