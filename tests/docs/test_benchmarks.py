"""The tables of the page of benchmarks are those of the results."""

from __future__ import annotations

from benchmarks.tables import PAGE, TABLES, rendered


def test_the_page_shows_the_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == rendered(page), "run `python -m benchmarks.tables`"


def test_every_table_has_its_place() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in TABLES if f"<!-- table {name} -->" not in page] == []
