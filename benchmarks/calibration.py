"""Wall time and peak memory of entropy calibration over the number of samples, against onnxruntime.quantization.

    python -m benchmarks.calibration [MODEL ...] [--samples N ...]

Both tools compile the same model from the same folder of .npz files, read one at a time, in a fresh process for each
figure; imports are done before the clock starts, and ONNX Runtime's tool gets its model preprocessed for free. It
searches 2048 bins, as qcompile searches 1024 to 2048 on the side of the largest value (its default of 128 bins leaves
one candidate). Sentences are cut to one length, since its histograms take no other. A count that does not fit into the
memory of the machine is noted, and larger ones are not tried. Draws docs/calibration-memory.svg.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.record import peak_mib, save
from benchmarks.tables import calibrating
from benchmarks.variants import preprocess, read
from tests.zoo import MODELS
from tests.zoo.model import Sample

_MODELS = ("efficientnet-lite0", "all-minilm-l6-v2")
_COUNTS = (64, 256, 1024, 2000)
_ORT, _OURS = "ORT entropy", "qcompile"
_BINS = 2048
_SHARE = 0.9
"""Of the free memory, that a process may take."""

_PICTURE = Path(__file__).parent.parent / "docs" / "calibration-memory.svg"

Row = dict[str, Any]


def once(tool: str, model: Path, samples: Path, out: Path) -> Row:
    """Run `tool` in this process: {"seconds", "peak_mib"}."""
    ort = import_module("onnxruntime.quantization.quantize")
    import qcompile.frontends.api
    from qcompile.frontends.builtin_recipes import find_recipe

    recipe = find_recipe("int8-static").with_overrides(["calibrate.method=entropy"])
    recipe.passes()
    start = time.perf_counter()
    if tool == _ORT:
        with patch.object(ort, "create_calibrator", partial(_calibrator, ort.create_calibrator)):
            _quantize_static(model, out, samples)
    else:
        qcompile.compile(model, recipe, calibration=samples, output=out, overwrite=True, prove=False)
    return {"seconds": time.perf_counter() - start, "peak_mib": peak_mib()}


def _calibrator(create: Any, *arguments: Any, **options: Any) -> Any:
    """quantize_static has no option for the number of bins."""
    return create(*arguments, **options | {"extra_options": options.get("extra_options", {}) | {"num_bins": _BINS}})


def _quantize_static(model: Path, out: Path, samples: Path) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = read(samples)

        def get_next(self) -> Sample | None:
            return next(self.samples, None)

    quantization.quantize_static(
        model,
        out,
        Reader(),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        calibrate_method=quantization.CalibrationMethod.Entropy,
    )


def measure(name: str, counts: Sequence[int]) -> list[Row]:
    """One row for each tool and number of samples."""
    model = MODELS[name]()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        prepared = preprocess(model.path(), folder / "preprocessed.onnx")
        samples = folder / "samples"
        samples.mkdir()
        written = 0
        given = _one_length(model.calibration(max(counts)))
        for count in counts:
            for sample in itertools.islice(itertools.cycle(given), written, count):
                np.savez(samples / f"{written:05}.npz", allow_pickle=False, **sample)
                written += 1
            for tool, source in ((_ORT, prepared), (_OURS, model.path())):
                if any(r["tool"] == tool and "error" in r for r in rows):
                    continue
                figures = _in_process(tool, source, samples, folder / "out.onnx")
                rows.append({"model": name, "samples": count, "tool": tool, **figures})
                print("  ", rows[-1], flush=True)
    return rows


def _one_length(samples: list[Sample]) -> list[Sample]:
    """Sentences cut to the shortest one; images are left alone."""
    shapes = {array.shape for sample in samples for array in sample.values()}
    if any(len(shape) != 2 for shape in shapes):
        return samples
    length = min(shape[1] for shape in shapes)
    return [{name: array[:, :length] for name, array in sample.items()} for sample in samples]


def _in_process(tool: str, model: Path, samples: Path, out: Path) -> Row:
    command = [sys.executable, "-m", "benchmarks.calibration", "--once", tool, str(model), str(samples), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["killed"]
        return {"error": "out of memory" if "memory" in done.stderr.lower() or "alloc" in done.stderr else lines[-1]}
    figures: Row = json.loads(done.stdout.splitlines()[-1])
    return figures


def _limit_memory() -> None:
    """Let this process fail rather than drive the machine out of memory."""
    status = Path("/proc/meminfo").read_text(encoding="utf-8")
    free = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("MemAvailable")) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (int(_SHARE * free), resource.RLIM_INFINITY))


def draw(rows: Sequence[Row]) -> str:
    """Peak memory over samples as an SVG, both axes logarithmic."""
    measured = [r for r in rows if "error" not in r]
    counts = sorted({r["samples"] for r in measured})
    width, height, left, bottom = 640.0, 360.0, 70.0, 50.0

    def x(samples: float) -> float:
        span = np.log2(counts[-1] / counts[0]) or 1.0
        return left + (width - left - 30) * float(np.log2(samples / counts[0]) / span)

    def y(mib: float) -> float:
        low, high = np.log2(128), np.log2(65536)
        return height - bottom - (height - bottom - 40) * float((np.log2(mib) - low) / (high - low))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" font-family="Segoe UI, Helvetica, '
        'Arial, sans-serif" font-size="12" role="img" aria-label="Peak memory of entropy calibration over samples">',
        f'<rect width="{width:g}" height="{height:g}" rx="10" fill="#fafbff"/>',
        '<text x="16" y="20" fill="#37474f">peak memory, GiB</text>',
        f'<text x="{x(counts[-1]):.0f}" y="{height - 12:g}" fill="#37474f" text-anchor="middle">samples</text>',
    ]
    for gib in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64):
        at = y(1024 * gib)
        parts.append(f'<path d="M{left:g} {at:.1f}H{x(counts[-1]):.1f}" stroke="#dde1f2"/>')
        parts.append(f'<text x="{left - 8:g}" y="{at + 4:.1f}" fill="#607d8b" text-anchor="end">{gib:g}</text>')
    for count in counts:
        parts.append(f'<text x="{x(count):.1f}" y="{height - 30:g}" fill="#607d8b" text-anchor="middle">{count}</text>')
    colors = {_ORT: "#ef6c00", _OURS: "#3949ab"}
    for (name, tool), dash in zip(itertools.product(_MODELS, colors), ("", "", "5 4", "5 4"), strict=True):
        line = [(x(r["samples"]), y(r["peak_mib"])) for r in measured if (r["model"], r["tool"]) == (name, tool)]
        if not line:
            continue
        points = "L".join(f"{a:.1f} {b:.1f}" for a, b in line)
        parts.append(
            f'<path d="M{points}" fill="none" stroke="{colors[tool]}" stroke-width="2" stroke-dasharray="{dash}"/>'
        )
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colors[tool]}"/>' for a, b in line]
        above = all(r["peak_mib"] <= p["peak_mib"] for p, r in _pairs(measured, name, tool))
        ends_early = line[-1][0] < x(counts[-1])
        place = (line[-1][0], line[-1][1] + 4) if ends_early else (line[0][0], line[0][1] + (-10 if above else 20))
        label = f"{tool}, {MODELS[name].title}"
        parts.append(f'<text x="{place[0] + 8:.1f}" y="{place[1]:.1f}" fill="{colors[tool]}">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _pairs(rows: Sequence[Row], name: str, tool: str) -> list[tuple[Row, Row]]:
    """Figures of `name` beside those of the other models, for the same tool and samples."""
    return [
        (own, other)
        for own, other in itertools.product(rows, rows)
        if own["tool"] == other["tool"] == tool and own["samples"] == other["samples"] and own["model"] == name
    ]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("models", nargs="*", default=_MODELS)
    asked.add_argument("--samples", nargs="+", type=int, default=_COUNTS)
    options = asked.parse_args()
    rows: list[Row] = []
    for name in options.models:
        print(MODELS[name].title, flush=True)
        rows += measure(name, options.samples)
    print(save("calibration", rows, {"bins": _BINS}))
    _PICTURE.write_text(draw(rows), encoding="utf-8")
    print(calibrating())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        _limit_memory()
        print(json.dumps(once(sys.argv[2], *(Path(p) for p in sys.argv[3:6]))))
    else:
        main()
