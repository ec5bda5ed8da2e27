"""The tables of language models in docs/benchmarks.md, from benchmarks/results/language/."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.record import RESULTS, table

_FLOAT = "float"
_HONEST, _ORIGINAL = "smollm2-135m-permuted", "smollm2-135m"
_NOTHING = "Not measured yet."
Row = dict[str, Any]


def language() -> str:
    """Bits, size and answers of every form; perplexity of the permuted copy and of the original."""
    rows, original = _rows(_HONEST), _rows(_ORIGINAL)
    if not rows:
        return _NOTHING
    texts = list(rows[_FLOAT]["answers"])
    lines = []
    for name, row in rows.items():
        if "error" in row:
            lines.append([name, "fails", *[""] * (len(texts) + 5)])
            continue
        first = row["answers"][texts[0]]
        agreement = [f"{first['agreement']:.1%}", f"{first['divergence']:.4f}"] if name != _FLOAT else ["", ""]
        bits = row["bits"]
        lines.append(
            [
                *(name, f"{bits['layers']:.2f} / {bits['head']:.3g}"),
                "" if row["kind"] == "peer" else f"{row['bytes'] / 1e6:.0f}",
                *(perplexity(rows, name, text) for text in texts),
                *agreement,
                perplexity(original, name, texts[0]),
            ]
        )
    header = ["", "bits: layers / head", "MB", *texts, "tokens agree", "divergence, nats", f"{texts[0]}, original"]
    return table(header, lines)


def language_speed() -> str:
    """Time relative to float, less is faster: with one thread and with two."""
    rows = {name: row for name, row in _rows(_HONEST).items() if "latency" in row}
    if not rows:
        return _NOTHING
    labels = list(next(iter(rows.values()))["latency"])
    lines = [
        [name, *(" / ".join(f"{row['latency'][label][t]:.2f}" for t in row["latency"][label]) for label in labels)]
        for name, row in rows.items()
    ]
    return table(["time of float's", *labels], lines)


def language_compiling() -> str:
    """Time and peak memory of making the file."""
    rows = {name: row["compiling"] for name, row in _rows(_HONEST).items() if "compiling" in row}
    if not rows:
        return _NOTHING
    return table(["", "s", "peak MiB"], [[n, f"{r['seconds']:.0f}", f"{r['peak_mib']:.0f}"] for n, r in rows.items()])


def perplexity(rows: dict[str, Row], name: str, text: str) -> str:
    """With what it is more than float's."""
    row = rows.get(name, {}).get("answers")
    if row is None:
        return ""
    value, start = row[text]["perplexity"], rows[_FLOAT]["answers"][text]["perplexity"]
    return f"{value:.2f}" if name == _FLOAT else f"{value:.2f} ({value / start - 1:+.1%})"


def _rows(model: str) -> dict[str, Row]:
    file = RESULTS / "language" / f"{model}.json"
    if not file.is_file():
        return {}
    return {row["form"]: row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}
