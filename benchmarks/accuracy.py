"""Size and task metric of every variant of every model of the zoo.

python -m benchmarks.accuracy [MODEL ...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.record import save, table
from benchmarks.variants import FLOAT, build
from tests.zoo import MODELS
from tests.zoo.model import ZooModel, runner


def measure(model: ZooModel) -> list[dict[str, Any]]:
    """One row for each variant."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = build(model, Path(folder))
        reference = runner(model.path())
        for variant, file in files.items():
            row: dict[str, Any] = {"model": model.name, "variant": variant}
            if isinstance(file, str):
                row["error"] = file
            else:
                try:
                    run = runner(file)
                    row |= {"bytes": file.stat().st_size, "metric": model.metric(run)}
                    row["details"] = model.details(run, reference)
                except Exception as error:
                    row["error"] = f"{type(error).__name__}: {error}"
            rows.append(row)
            print("  ", row, flush=True)
    return rows


def main(names: list[str]) -> None:
    rows: list[dict[str, Any]] = []
    data = {}
    for name in names:
        model = MODELS[name]()
        print(model.title, flush=True)
        rows += measure(model)
        data[name] = {"metric": model.metric_name, "data": model.data, "calibration": model.calibration_count}
    print(save("accuracy", rows, {"models": data}))
    print(table(["Model", "", "MB", "metric", "drop", "more"], [_cells(r, rows) for r in rows]))
    for name, about in data.items():
        print(
            f"- {MODELS[name].title}: {about['metric']} on {about['data']}; {about['calibration']} samples calibrate."
        )


def _cells(row: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    title = MODELS[row["model"]].title if row["variant"] == FLOAT else ""
    if "error" in row:
        return [title, row["variant"], "", "failed", "", row["error"].split("\n")[0][:80]]
    start = next(r["metric"] for r in rows if r["model"] == row["model"] and r["variant"] == FLOAT)
    more = ", ".join(f"{k} {v:.4f}" for k, v in row["details"].items())
    size, metric = f"{row['bytes'] / 1e6:.2f}", f"{row['metric']:.4f}"
    return [title, row["variant"], size, metric, f"{start - row['metric']:+.4f}" if title == "" else "", more]


if __name__ == "__main__":
    main(sys.argv[1:] or list(MODELS))
