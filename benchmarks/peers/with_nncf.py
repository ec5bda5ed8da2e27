"""NNCF's post-training quantization of an ONNX model: with_nncf.py MODEL SAMPLES OUT default|transformer"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nncf
import numpy as np
import onnx


def main(model: str, samples: str, out: str, preset: str) -> None:
    start = time.perf_counter()
    loaded = [dict(np.load(file)) for file in sorted(Path(samples).glob("*.npz"))]
    quantized = nncf.quantize(
        onnx.load(model),
        nncf.Dataset(loaded),
        subset_size=len(loaded),
        model_type=nncf.ModelType.TRANSFORMER if preset == "transformer" else None,
    )
    onnx.save(quantized, out)
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main(*sys.argv[1:])
