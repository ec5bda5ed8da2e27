"""onnxsim's static int8 of an ONNX model: with_onnxsim.py MODEL SAMPLES OUT static"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxsim


def main(model: str, samples: str, out: str, scheme: str) -> None:
    start = time.perf_counter()
    loaded = [dict(np.load(file)) for file in sorted(Path(samples).glob("*.npz"))]
    config = onnxsim.QuantizationConfig(scheme=scheme, calibration_data=loaded)
    simplified, _ = onnxsim.simplify(onnx.load(model))  # without shapes it would quantize nothing, and not say so
    onnx.save(onnxsim.quantize(simplified, config), out)
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main(*sys.argv[1:])
