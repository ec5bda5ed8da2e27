"""The big table: every model of the zoo in every form; task metric, size, speed and time to make it.

    python -m benchmarks.recipes [--models A,B] [--variants X,Y] [--peers] [--no-timing] [--fresh]

Results lie in benchmarks/results/recipes/, a file for each model, a row for each variant. A row is measured again only
when its file has other bytes than the one that was measured, or with --fresh; so the table can be made in parts. A
variant is timed beside the float model, in interleaved rounds. `python -m benchmarks.tables` writes the tables of
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.cell import judged, made, write_samples
from benchmarks.record import RESULTS, commit, save
from benchmarks.timing import ROUNDS, best_runs
from benchmarks.variants import FLOAT, Variant, variants
from tests.zoo import ALL_MODELS
from tests.zoo.model import ZooModel

_THREADS = (1, 2)
_LEFT_OUT = ("smollm2-135m-permuted",)
"""Only 4-bit results differ there; asked for by name."""


def measure(model: ZooModel, chosen: list[Variant], *, timing: bool, fresh: bool) -> None:
    """Bring the rows of `chosen` up to date."""
    rows = stored(model.name)
    with tempfile.TemporaryDirectory() as folder:
        samples = write_samples(model, Path(folder))
        files = {}
        for variant in chosen:
            file = made(model, variant, samples, fresh)
            if "error" in file:
                rows[variant.name] = _row(variant, error=file["error"])
            else:
                files[variant.name] = Path(file["file"])
                rows[variant.name] = _judged_row(model, variant, file, None if fresh else rows.get(variant.name))
            _save(model, rows)
            print("  ", {k: v for k, v in rows[variant.name].items() if k not in ("artifact", "commit")}, flush=True)
    if timing:
        _time(model, files, rows, [v.name for v in chosen if v.timed], fresh)


def stored(model: str) -> dict[str, dict[str, Any]]:
    """The rows measured so far, by variant."""
    file = RESULTS / "recipes" / f"{model}.json"
    if not file.is_file():
        return {}
    return {row["variant"]: row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}


def _judged_row(
    model: ZooModel, variant: Variant, file: dict[str, Any], known: dict[str, Any] | None
) -> dict[str, Any]:
    if known and known.get("artifact") == file["artifact"] and known.get("data") == model.data:
        return known | {"seconds": file["seconds"]}
    found = judged(model, variant, file["file"])
    if "error" in found:
        return _row(variant, error=f"the file does not run: {found['error']}")
    about = {key: file[key] for key in ("artifact", "bytes", "seconds")}
    return _row(variant, **about, **found, data=model.data)


def _row(variant: Variant, **fields: Any) -> dict[str, Any]:
    return {"variant": variant.name, "kind": variant.kind, "commit": commit(), **fields}


def _time(
    model: ZooModel, files: dict[str, Path], rows: dict[str, dict[str, Any]], names: list[str], fresh: bool
) -> None:
    """Rows get {"latency": {sample: {threads: {"ms", "speedup"}}}}."""
    wanted = [n for n in names if "metric" in rows[n] and (fresh or "latency" not in rows[n])]
    if not wanted:
        return
    together = {FLOAT: model.path()} | {n: files[n] for n in wanted}
    for label, sample in model.timing_samples().items():
        for threads in _THREADS:
            best = best_runs({name: (file, sample) for name, file in together.items()}, threads)
            print("  ", label, f"{threads} threads", {n: round(ms, 3) for n, ms in best.items()}, flush=True)
            for name in wanted:
                cell = {"ms": best[name], "speedup": best[FLOAT] / best[name]}
                rows[name].setdefault("latency", {}).setdefault(label, {})[str(threads)] = cell
    _save(model, rows)


def _save(model: ZooModel, rows: dict[str, dict[str, Any]]) -> None:
    about = {
        "model": model.name,
        "metric": model.metric_name,
        "lower_is_better": model.lower_is_better,
        "data": model.data,
        "calibration": model.calibration_count,
        "rounds": ROUNDS,
    }
    ordered = [rows[n] for n in variants() if n in rows]
    save("recipes", ordered, about, f"recipes/{model.name}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__.split("\n")[0])
    parser.add_argument("--models", help="names of the zoo, with commas; all but the permuted one if left out")
    parser.add_argument("--variants", help="as in the tables, with commas; float, ONNX Runtime and recipes if left out")
    parser.add_argument("--peers", action="store_true", help="also the tools that need an environment of their own")
    parser.add_argument("--no-timing", action="store_true", help="leave out latency, as on a busy machine")
    parser.add_argument("--fresh", action="store_true", help="make and measure all of it again")
    options = parser.parse_args()
    if options.variants:
        chosen = [variants()[name] for name in options.variants.split(",")]
    else:
        chosen = [v for v in variants().values() if options.peers or v.kind != "peer"]
    models = options.models.split(",") if options.models else [m for m in ALL_MODELS if m not in _LEFT_OUT]
    for name in models:
        print(ALL_MODELS[name].title, flush=True)
        measure(ALL_MODELS[name](), chosen, timing=not options.no_timing, fresh=options.fresh)


if __name__ == "__main__":
    main()
