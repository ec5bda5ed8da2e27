"""The memory that is free is the least of what machine, control groups and limits leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompile.runtime import memory


def test_a_control_group_is_heeded_and_what_it_caches_counts_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text("1000\n")
    (inner.parent / "memory.current").write_text("700\n")
    (inner.parent / "memory.stat").write_text("anon 500\ninactive_file 150\nactive_file 50\n")
    assert list(memory._group(tmp_path, "/outer/inner", "memory.max", "memory.current")) == [500]
    assert list(memory._group(tmp_path, "/gone", "memory.max", "memory.current")) == []


def test_the_machine_has_some() -> None:
    assert 0 < memory.free_bytes() < 1 << 50


def test_a_limit_of_the_process_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    given = {resource.RLIMIT_DATA: 3 << 30, resource.RLIMIT_AS: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (given[kind], given[kind]))
    monkeypatch.setattr(memory, "_table", lambda file, unit=1024: {"VmData": 1 << 30, "MemAvailable": 1 << 40})
    assert list(memory._limits()) == [2 << 30]
    assert memory.free_bytes() <= 2 << 30
    monkeypatch.setattr(memory, "_table", lambda file, unit=1024: {"VmData": 4 << 30})
    assert memory.free_bytes() == 0


def test_where_nothing_is_known_all_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for source in ("_machine", "_groups", "_limits"):
        monkeypatch.setattr(memory, source, lambda: iter(()))
    assert memory.free_bytes() > 1 << 60
