"""One cell of the big table: one model in one form, made and judged in processes of their own.

A tool that crashes, or a file that crashes ONNX Runtime, is a cell that says so. Files stay in the zoo's cache, and are
made again only when the model, the samples or the tool has changed.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.variants import FLOAT, Variant, variants
from tests.zoo import ALL_MODELS
from tests.zoo.cache import cache
from tests.zoo.model import ZooModel, runner

_LIMIT = 3600


def made(model: ZooModel, variant: Variant, samples: Path, fresh: bool = False) -> dict[str, Any]:
    """The file of one variant: {"file", "artifact", "bytes", "seconds"}, or {"error"}."""
    folder = cache() / "benchmarks" / model.name
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{variant.name.replace(' ', '-')}.onnx"
    record = file.with_suffix(".json")
    key = _digest([variant.stamp(), digest_of(model.path()), samples.name])
    if record.is_file() and not fresh:
        known: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        if known["key"] == key and ("error" in known or file.is_file()):
            return known
    record.unlink(missing_ok=True)
    known = {"key": key} | in_process("benchmarks.cell", "make", model.name, variant.name, str(samples), str(file))
    if "error" not in known:
        known |= {"file": str(file), "artifact": digest_of(file), "bytes": file.stat().st_size}
    record.write_text(json.dumps(known), encoding="utf-8")
    return known


def judged(model: ZooModel, variant: Variant, file: str) -> dict[str, Any]:
    """{"metric", "details"} of a file, or {"error"}."""
    return in_process("benchmarks.cell", "judge", model.name, variant.name, file)


def write_samples(model: ZooModel, parent: Path) -> Path:
    """What every variant of `model` is calibrated with: a folder of .npz files, called after their content."""
    digest, folder = hashlib.sha256(), parent / "samples"
    folder.mkdir()
    for i, sample in enumerate(model.calibration(model.calibration_count)):
        np.savez(folder / f"{i:05}.npz", allow_pickle=False, **sample)
        for name, array in sorted(sample.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return folder.rename(parent / digest.hexdigest())


def digest_of(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def in_process(module: str, *arguments: str) -> dict[str, Any]:
    """What `python -m module arguments` prints as the last line, JSON; {"error"} where it fails."""
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {_LIMIT} s"}
    if done.returncode < 0:
        return {"error": f"killed by signal {-done.returncode}"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no reason given"])[-1][:300]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _make(model: str, variant: str, samples: str, out: str) -> dict[str, Any]:
    target = Path(out)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:  # tools leave files beside their output
        unfinished = Path(folder) / "out.onnx"
        seconds = variants()[variant].make(ALL_MODELS[model]().path(), Path(samples), unfinished)
        unfinished.replace(target)
    return {"seconds": seconds}


def _judge(name: str, variant: str, file: str) -> dict[str, Any]:
    model, waiting = ALL_MODELS[name](), {"session.intra_op.allow_spinning": "0"}
    run = runner(Path(file), entries=variants()[variant].entries | waiting)
    reference = run if variant == FLOAT else runner(model.path(), entries=waiting)
    return {"metric": model.metric(run), "details": model.details(run, reference)}


def main(task: str, *arguments: str) -> None:
    try:
        found = _make(*arguments) if task == "make" else _judge(*arguments)
    except Exception as error:
        message = " ".join(str(error).split())
        found = {"error": f"{type(error).__name__}: {message}"[:400]}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
