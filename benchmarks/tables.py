"""The tables of docs/benchmarks.md and of README.md, from benchmarks/results/.

    python -m benchmarks.tables

Each table stands between `<!-- table NAME -->` and `<!-- end of table -->`; the text around them is written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.language_tables import language, language_compiling, language_speed
from benchmarks.pruning_table import pruning
from benchmarks.record import RESULTS, table
from benchmarks.sparsity_tables import masks, sparsity
from tests.zoo import ALL_MODELS

_ROOT = Path(__file__).parent.parent
PAGES = (_ROOT / "docs" / "benchmarks.md", _ROOT / "README.md")
_MARKED = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_FLOAT = "float"
Row = dict[str, Any]


def rendered(page: str) -> str:
    """`page` with its tables as the results are now."""
    return _MARKED.sub(lambda m: f"{m[1]}\n{TABLES[m[2]]()}\n\n{m[3]}", page)


def accuracy() -> str:
    """Metric, and how much of it is lost, relative to float."""

    def cell(row: Row, start: Row, model: Any) -> str:
        if row is start:
            return f"{row['metric']:.4g}"
        lost = model.loss(start["metric"], row["metric"]) / start["metric"]
        return f"{row['metric']:.4g} ({lost:+.1%})" if lost < 10 else f"{row['metric']:.2g}"

    return _matrix(cell)


def details() -> str:
    """The other metrics of the models that have some."""
    results = _results()
    columns = [(m, d) for m, rows in results.items() for d in rows.get(_FLOAT, {}).get("details", {})]
    lines = [
        [name, *(_number(results[m].get(name, {}).get("details", {}).get(d)) for m, d in columns)]
        for name in _variants(results)
    ]
    return table(["", *(f"{ALL_MODELS[m].title}: {d}" for m, d in columns)], lines)


def speed() -> str:
    """Times faster than float with one thread and with two; the float line in ms."""
    results = _results()
    columns = [(m, label) for m, rows in results.items() for label in rows.get(_FLOAT, {}).get("latency", {})]
    if not columns:
        return "Not measured since the files changed."
    lines = []
    for name in _variants(results):
        cells = []
        for model, label in columns:
            timed = results[model].get(name, {}).get("latency", {}).get(label, {})
            what = "ms" if name == _FLOAT else "speedup"
            cells.append(" / ".join(f"{timed[threads][what]:.3g}" for threads in sorted(timed)))
        lines.append([f"{name}, ms" if name == _FLOAT else name, *cells])
    return table(["", *(f"{ALL_MODELS[m].title}{label and ': '}{label}" for m, label in columns)], lines)


def size() -> str:
    """Size of the file, relative to float; the float line in MB."""

    def cell(row: Row, start: Row, model: Any) -> str:
        return f"{row['bytes'] / 1e6:.2f} MB" if row is start else f"{row['bytes'] / start['bytes']:.1%}"

    return _matrix(cell)


def seconds() -> str:
    """Seconds that it takes to make the file, proofs apart."""
    return _matrix(lambda row, start, model: "" if row is start else f"{row['seconds']:.1f}")


def failures() -> str:
    """Why a cell says `fails`."""
    lines = [
        f"- {name}, {ALL_MODELS[model].title}: {' '.join(row['error'].split())[:200]}"
        for model, rows in _results().items()
        for name, row in rows.items()
        if "error" in row
    ]
    return "\n".join(lines) or "Nothing failed."


def data() -> str:
    """What each metric is."""
    lines = []
    for name in _results():
        about, title = _load(f"recipes/{name}"), ALL_MODELS[name].title
        lines.append(f"- {title}: {about['metric']} on {about['data']}; {about['calibration']} samples calibrate.")
    return "\n".join(lines)


def headline() -> str:
    """Metric of the main recipes beside ONNX Runtime's static quantization; times faster than float with one thread."""
    shown = ("ORT static", "int8-static", "int8-accurate")
    lines = []
    for model, rows in _results().items():
        if not all("latency" in rows.get(name, {}) for name in shown[1:]):
            continue
        about, zoo = _load(f"recipes/{model}"), ALL_MODELS[model]()
        digits = 2 if zoo.lower_is_better else 3
        cells = []
        for row in (rows.get(name) for name in shown):
            faster = next(iter(row["latency"].values()))["1"]["speedup"] if row else 0.0
            cells.append(f"{row['metric']:.{digits}f} ({faster:.2f})" if row else "")
        metric = about["metric"] + (", lower is better" if zoo.lower_is_better else "")
        lines.append([zoo.title, metric, f"{rows[_FLOAT]['metric']:.{digits}f}", *cells])
    return table(["Model", "Metric", "float", *shown], lines)


def compiling() -> str:
    """Time and memory of compiling beside ONNX Runtime's tool."""
    rows = _load("compile")["rows"]
    lines = []
    for row in rows:
        same = (r for r in rows if r["model"] == row["model"] and r["samples"] == row["samples"])
        ort = next(r for r in same if r["tool"] == "ORT static")
        lines.append(
            [
                *(ALL_MODELS[row["model"]].title, str(row["samples"]), row["tool"]),
                *(f"{row['seconds']:.1f}", f"{row['seconds'] / ort['seconds']:.2f}"),
                *(f"{row['peak_mib']:.0f}", f"{row['peak_mib'] / ort['peak_mib']:.2f}"),
            ]
        )
    return table(["Model", "samples", "", "s", "of ORT's time", "peak MiB", "of ORT's memory"], lines)


def calibrating() -> str:
    """Time and memory of calibrating with entropy beside ONNX Runtime's tool."""
    rows = _load("calibration")["rows"]
    lines = []
    for row in rows:
        head = [ALL_MODELS[row["model"]].title, str(row["samples"]), row["tool"]]
        if "error" in row:
            lines.append([*head, row["error"], "", ""])
            continue
        same = [r for r in rows if r["model"] == row["model"] and r["samples"] == row["samples"] and "seconds" in r]
        ort = next((r["seconds"] for r in same if r["tool"] != "qcompile"), None)
        faster = f"{ort / row['seconds']:.1f}" if ort and row["tool"] == "qcompile" else ""
        lines.append([*head, f"{row['seconds']:.1f}", f"{row['peak_mib']:.0f}", faster])
    return table(["Model", "samples", "", "s", "peak MiB", "times as fast"], lines)


TABLES: dict[str, Callable[[], str]] = {
    f.__name__: f
    for f in (
        *(accuracy, details, speed, size, seconds, failures, data, headline, compiling, calibrating),
        *(language, language_speed, language_compiling, pruning, sparsity, masks),
    )
}


def _matrix(cell: Callable[[Row, Row, Any], str]) -> str:
    """A line for each variant, a column for each model."""
    results = _results()
    lines = []
    for name in _variants(results):
        cells = []
        for model, rows in results.items():
            row, start = rows.get(name, {}), rows[_FLOAT]
            cells.append("fails" if "error" in row else cell(row, start, ALL_MODELS[model]()) if row else "")
        lines.append([name, *cells])
    return table(["", *(ALL_MODELS[m].title for m in results)], lines)


def _results() -> dict[str, dict[str, Row]]:
    """Rows by model and variant."""
    found = {}
    for name in ALL_MODELS:
        if (RESULTS / "recipes" / f"{name}.json").is_file():
            found[name] = {row["variant"]: row for row in _load(f"recipes/{name}")["rows"]}
    return found


def _variants(results: dict[str, dict[str, Row]]) -> Iterator[str]:
    """Those measured on any model: float and the other tools first, then the recipes."""
    kinds = {row["variant"]: row["kind"] for rows in results.values() for row in rows.values()}
    for wanted in ("float", "ORT", "peer", "recipe"):
        yield from (name for name, kind in kinds.items() if kind == wanted)


def _load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def main() -> None:
    for page in PAGES:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
