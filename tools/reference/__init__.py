"""Pages of the documentation that are written by the program they describe: `python -m tools.reference`."""

from __future__ import annotations

from pathlib import Path

from tools.reference import operators, passes, recipes, schema, targets

DOCS = Path(__file__).parents[2] / "docs"


def pages() -> dict[Path, str]:
    """Every generated file with its text."""
    return {
        DOCS / "passes.md": passes.page(),
        DOCS / "recipes.md": recipes.page(),
        DOCS / "targets.md": targets.page(),
        DOCS / "operators.md": operators.page(),
        DOCS / "recipe.schema.json": schema.text(),
    }
