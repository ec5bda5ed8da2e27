"""Markdown out of docstrings and tables."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

GENERATED = "<!-- Written by `make docs` from the program itself. Edit the program, not this page. -->\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; `|` and line ends in cells are made harmless."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def first_sentence(documented: object) -> str:
    """The first sentence of a docstring, on one line."""
    text = (inspect.getdoc(documented) or "").split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=\.)\s", text)[0]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
