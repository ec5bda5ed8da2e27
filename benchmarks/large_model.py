"""A model larger than memory: 6 GB of float32 weights compiled in a process that may take 2 GB.

    python -m benchmarks.large_model FOLDER [RECIPE ...] [--layers N] [--limit MIB]

Makes a decoder of random weights in FOLDER (some 10 GB must be free there) and removes it in the end. Each recipe
runs in a process of its own under `ulimit -d`, which counts heap and private maps; weights that are mapped from
their files count as nothing. Peak memory is what the process really held: resident and not of a file.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.record import held_mib, save
from tests.large_decoder import Size, write_decoder

_RECIPES = ("int4-rtn", "int8-weight-only", "int4-gptq")
_DECODER = Size(width=2048, hidden=8192, layers=22, vocabulary=32000)
_LIMIT = 2048
_SPACE = 1.7
"""Of the model's bytes, that must be free: the model, its codes and the artifact."""

_EVERY = 0.02  # seconds between two looks at the memory


def once(model: Path, recipe: str, limit: int) -> dict[str, Any]:
    """Compile in this process, which may take `limit` MiB."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit << 20, limit << 20))
    import qcompile

    watch = Watch()
    start = time.perf_counter()
    with watch:
        artifact = qcompile.compile(model, recipe, calibration="synthetic", overwrite=True)
    report = artifact.report
    return {
        "recipe": recipe,
        "limit_mib": limit,
        "peak_mib": watch.peak,
        "seconds": time.perf_counter() - start,
        "passes_seconds": sum(p.seconds for p in report.passes),
        "float_mb": report.bytes_before / 1e6,
        "compiled_mb": report.bytes_after / 1e6,
        "proofs": {p.name: [p.passed, p.detail] for p in report.proofs},
    }


class Watch:
    """The most memory this process held while the watch lasted, in MiB: resident, and not of a file."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(_EVERY):
            self.peak = max(self.peak, held_mib())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("recipes", nargs="*", default=list(_RECIPES))
    parser.add_argument("--layers", type=int, default=_DECODER.layers)
    parser.add_argument("--limit", type=int, default=_LIMIT)
    given = parser.parse_args()
    size = Size(_DECODER.width, _DECODER.hidden, given.layers, _DECODER.vocabulary)
    folder = given.folder / "large-model"
    free = shutil.disk_usage(given.folder).free
    if free < _SPACE * size.bytes:
        sys.exit(f"{given.folder} has {free / 1e9:.1f} GB free, {_SPACE * size.bytes / 1e9:.1f} GB are needed")
    folder.mkdir()
    try:
        model = write_decoder(folder, size)
        rows = [_in_process(model, recipe, given.limit) for recipe in given.recipes]
    finally:
        shutil.rmtree(folder)
    print(save("large_model", rows, {"layers": size.layers, "weights_gb": size.bytes / 1e9}, file="large-model"))


def _in_process(model: Path, recipe: str, limit: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.large_model", "--once", str(model), recipe, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"recipe": recipe, "limit_mib": limit, "failed": done.stderr.strip().splitlines()[-1:]}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print("  ", figures, flush=True)
    return figures


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        print(json.dumps(once(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))))
    else:
        main()
