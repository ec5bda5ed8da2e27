"""Imports point one way: frontends -> passes -> compiler; all may use runtime; runtime uses none of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import qcompile

ROOT = Path(qcompile.__file__).parent
FORBIDDEN = {
    "runtime": {"compiler", "passes", "frontends"},
    "compiler": {"passes", "frontends"},
    "passes": {"frontends"},
    "errors": {"runtime", "compiler", "passes", "frontends"},
}


def _imports(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported at run time; imports for type checkers alone tie nothing together."""
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield node.module or ""


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for module in _imports(ast.parse(path.read_text(encoding="utf-8"))):
        first, _, rest = module.partition(".")
        if first == "qcompile" and rest:
            assert rest.split(".")[0] not in FORBIDDEN.get(package, set()), f"{path} imports {module}"
