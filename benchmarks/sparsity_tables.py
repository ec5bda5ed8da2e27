"""The tables of sparse and low-rank language models in docs/benchmarks.md, from benchmarks/results/sparsity/."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.language_tables import perplexity
from benchmarks.record import RESULTS, table
from benchmarks.sparsity_forms import OURS, THEIRS

_MODEL, _FLOAT = "smollm2-135m-permuted", "float"
_NOTHING = "Not measured yet."
Row = dict[str, Any]


def sparsity() -> str:
    """Size and answers of every form, relative to float."""
    rows = {name: row for name, row in _rows().items() if "answers" in row or "error" in row}
    if "answers" not in rows.get(_FLOAT, {}):
        return _NOTHING
    texts = list(rows[_FLOAT]["answers"])
    lines = []
    for name, row in rows.items():
        if "error" in row:
            lines.append([name, "fails", *[""] * (len(texts) + 2)])
            continue
        first = row["answers"][texts[0]]
        agreement = [f"{first['agreement']:.1%}", f"{first['divergence']:.4f}"] if name != _FLOAT else ["", ""]
        size = "" if row["kind"] == "peer" else f"{row['bytes'] / 1e6:.0f}"
        lines.append([name, size, *(perplexity(rows, name, text) for text in texts), *agreement])
    return table(["", "MB", *texts, "tokens agree", "divergence, nats"], lines)


def masks() -> str:
    """The weights that ours and llm-compressor's keep in common: of all layers, and of the first three."""
    rows = {name: row["masks"] for name, row in _rows().items() if "masks" in row}
    if not rows:
        return _NOTHING
    lines = [[name, *(_overlap(rows[name].get(other, {})) for other in THEIRS)] for name in OURS if name in rows]
    return table(["weights kept by both: all layers / first q, k, v", *THEIRS], lines)


def _overlap(found: Row) -> str:
    return f"{found['all']:.1%} / {found['first']:.1%}" if "all" in found else "fails"


def _rows() -> dict[str, Row]:
    file = RESULTS / "sparsity" / f"{_MODEL}.json"
    if not file.is_file():
        return {}
    return {row["form"]: row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}
