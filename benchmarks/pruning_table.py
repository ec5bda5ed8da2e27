"""The table of pruned models in docs/benchmarks.md, from benchmarks/results/pruning/."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.record import RESULTS, table
from tests.zoo import ALL_MODELS

_FLOAT = "float"
Row = dict[str, Any]


def pruning() -> str:
    """Metric, its change, size and speed of every form; the float line in its units."""
    lines = []
    for file in sorted((RESULTS / "pruning").glob("*.json")):
        about = json.loads(file.read_text(encoding="utf-8"))
        start = next(row for row in about["rows"] if row["form"] == _FLOAT)
        title = f"{ALL_MODELS[about['model']].title}, {about['metric']}"
        lines += [[title, row["form"], *_cells(row, start)] for row in about["rows"]]
    if not lines:
        return "Not measured yet."
    return table(["Model, metric", "", "metric", "MB", "times as fast: one thread / two"], lines)


def _cells(row: Row, start: Row) -> list[str]:
    if "error" in row:
        return ["fails", "", ""]
    change = (row["metric"] - start["metric"]) / start["metric"]
    metric = f"{row['metric']:.4f}" + ("" if row is start else f" ({change:+.1%})")
    times = row.get("latency", {})
    unit = "ms" if row is start else "speedup"
    speed = " / ".join(f"{times[threads][unit]:.2f}" for threads in sorted(times))
    return [metric, f"{row['bytes'] / 1e6:.1f}", speed + (" ms" if speed and row is start else "")]
