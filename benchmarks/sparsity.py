"""Fewer weights in a language model: 2:4 sparsity, truncated SVD and low-rank branches, judged by perplexity.

    python -m benchmarks.sparsity [--models A,B] [--forms X;Y]
    python -m benchmarks.sparsity --masks [--models A,B]

One form after the other is made and judged, as benchmarks/language.py does it; rows lie in benchmarks/results/sparsity/
and are measured again only when a file has other bytes, so the table can be made in parts. `--masks` compares which
weights ours and llm-compressor's keep, on the same weights and windows. The tables are written by `benchmarks.tables`.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.language_cells import Cells
from benchmarks.record import commit
from benchmarks.sparsity_forms import OURS, THEIRS, forms
from benchmarks.sparsity_masks import overlaps

MODELS = ("smollm2-135m-permuted",)
CELLS = Cells("sparsity", forms)


def measure(model: str, names: list[str]) -> None:
    """Bring size and answers of some forms up to date."""
    for name in names:
        rows = CELLS.stored(model)
        rows[name], _ = CELLS.judged(model, forms()[name], rows.get(name, {}))
        CELLS.save(model, rows)
        print(model, rows[name], flush=True)


def compare_masks(model: str) -> None:
    """Rows of OURS get {"masks": {of THEIRS: overlap}}; their files are made where they are missing."""
    theirs = {name: CELLS.made(model, forms()[name]) for name in THEIRS}
    for name in OURS:
        rows, ours = CELLS.stored(model), CELLS.made(model, forms()[name])
        row = rows.setdefault(name, {"form": name, "kind": forms()[name].kind, "commit": commit()})
        row["masks"] = {
            other: {"error": ours.get("error") or file["error"]}
            if "error" in ours or "error" in file
            else overlaps(ours["file"], file["file"])
            for other, file in theirs.items()
        }
        CELLS.save(model, rows)
        print(model, name, row["masks"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sparsity", description=__doc__.split("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS), help="names of the zoo, with commas")
    parser.add_argument("--forms", help="as in the table, with semicolons; all if left out")
    parser.add_argument("--masks", action="store_true", help="compare which weights are kept instead")
    options = parser.parse_args()
    for model in options.models.split(","):
        if options.masks:
            compare_masks(model)
        else:
            measure(model, options.forms.split(";") if options.forms else list(forms()))


if __name__ == "__main__":
    if sys.argv[1:2] in (["make"], ["judge"]):
        CELLS.in_child(*sys.argv[1:])
    else:
        main()
