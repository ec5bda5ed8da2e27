"""The tables of the page of benchmarks and of the README are those of the results."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.tables import PAGES, TABLES, rendered


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_shows_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == rendered(text), "run `python -m benchmarks.tables`"


def test_every_table_has_its_place() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in TABLES if f"<!-- table {name} -->" not in text] == []
