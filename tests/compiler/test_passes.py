"""What every registered pass owes: a golden text, a line in the documentation, a docstring."""

from __future__ import annotations

from pathlib import Path

import pytest

import qcompile
from qcompile.compiler.passes import Pass, import_passes, registered_passes
from tests.golden import HERE

import_passes("qcompile.passes")
PASSES = [cls for cls in registered_passes().values() if cls.__module__.startswith("qcompile.")]
DOCUMENTATION = Path(qcompile.__file__).parents[1] / "docs" / "passes.md"

every_pass = pytest.mark.parametrize("cls", PASSES, ids=lambda cls: cls.name)


@every_pass
def test_has_a_golden_text(cls: type[Pass]) -> None:
    text = HERE / "passes" / f"{cls.name}.txt"
    assert text.exists(), f"write a test that calls assert_golden('passes/{cls.name}', ...)"
    assert text.read_text(encoding="utf-8").startswith("# before\n")


@every_pass
def test_is_documented(cls: type[Pass]) -> None:
    assert f"`{cls.name}`" in DOCUMENTATION.read_text(encoding="utf-8")
    assert (cls.__doc__ or "").strip()


@every_pass
def test_keeps_the_function_or_changes_it_on_purpose(cls: type[Pass]) -> None:
    assert not (cls.float_equivalent and cls.changes_function)


@every_pass
def test_is_frozen_and_lives_alone_in_a_file_of_its_phase(cls: type[Pass]) -> None:
    assert cls.model_config["frozen"]
    assert cls.__module__.split(".")[2] == cls.phase
    assert [c for c in PASSES if c.__module__ == cls.__module__] == [cls], "one technique, one file"
    assert cls.__module__.split(".")[3] == cls.name.replace("-", "_")
