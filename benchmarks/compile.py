"""Wall time and peak memory of compiling, against onnxruntime.quantization.quantize_static.

    python -m benchmarks.compile [MODEL ...]

Same model, same samples from the same folder of .npz files, read one at a time; a fresh process for each figure.
Imports are done before the clock starts. ONNX Runtime's tool gets its model preprocessed for free.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import peak_mib, save
from benchmarks.tables import compiling
from benchmarks.variants import preprocess, quantize_static, read
from tests.zoo import MODELS

_COUNTS = (64, 256, 1024)
_MODELS = ("efficientnet-lite0", "all-minilm-l6-v2")
_TOOLS = ("ORT static", "qcompile", "qcompile with proofs")
_REPEATS = 2


def once(tool: str, model: Path, samples: Path, out: Path) -> dict[str, float]:
    """Run `tool` in this process: {"seconds", "peak_mib"}."""
    import array_api_compat.numpy  # noqa: F401
    import networkx  # noqa: F401
    import onnx  # noqa: F401
    import onnxruntime.quantization  # noqa: F401

    import qcompile.frontends.api
    from qcompile.frontends.builtin_recipes import find_recipe

    recipe = find_recipe("int8-static").with_overrides(["calibrate.method=min-max"])
    recipe.passes()
    start = time.perf_counter()
    if tool == "ORT static":
        quantize_static(model, out, read(samples))
    else:
        prove = tool == "qcompile with proofs"
        qcompile.compile(model, recipe, calibration=samples, output=out, overwrite=True, prove=prove)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mib": peak_mib()}


def measure(name: str, counts: tuple[int, ...]) -> list[dict[str, Any]]:
    """One row for each tool and number of samples: the best of a few runs, interleaved."""
    model = MODELS[name]()
    rows = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        prepared = preprocess(model.path(), folder / "preprocessed.onnx")
        for count in counts:
            samples = folder / f"samples-{count}"
            samples.mkdir()
            for i, sample in enumerate(model.calibration(count)):
                np.savez(samples / f"{i:05}.npz", allow_pickle=False, **sample)
            runs: dict[str, list[dict[str, float]]] = {tool: [] for tool in _TOOLS}
            for _ in range(_REPEATS):
                for tool in _TOOLS:
                    source = prepared if tool == "ORT static" else model.path()
                    runs[tool].append(_in_process(tool, source, samples, folder / "out.onnx"))
            for tool, figures in runs.items():
                best = {key: min(f[key] for f in figures) for key in ("seconds", "peak_mib")}
                rows.append({"model": name, "samples": count, "tool": tool, **best})
                print("  ", rows[-1], flush=True)
    return rows


def main(names: list[str]) -> None:
    rows: list[dict[str, Any]] = []
    for name in names:
        print(MODELS[name].title, flush=True)
        rows += measure(name, _COUNTS)
    print(save("compile", rows, {"repeats": _REPEATS}))
    print(compiling())


def _in_process(tool: str, model: Path, samples: Path, out: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.compile", "--once", tool, str(model), str(samples), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{tool} failed: {done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        print(json.dumps(once(sys.argv[2], *(Path(p) for p in sys.argv[3:6]))))
    else:
        main(sys.argv[1:] or list(_MODELS))
