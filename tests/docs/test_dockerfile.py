"""The container recipe: what it copies is there and reaches it, and what it installs is what the project names."""

from __future__ import annotations

import re
from pathlib import Path

from qcompile.runtime.ops import tools

_ROOT = Path(__file__).parents[2]
_RECIPE = _ROOT / "packaging" / "Dockerfile"
_TEXT = _RECIPE.read_text(encoding="utf-8")


def test_copied_files_are_there_and_not_ignored() -> None:
    sources = [name for line in re.findall(r"^COPY (.+) /\S+$", _TEXT, re.MULTILINE) for name in line.split()]
    assert "qcompile" in sources
    allowed = _RECIPE.with_name("Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for source in sources:
        assert (_ROOT / source).exists()
        assert f"!{source}" in allowed


def test_the_headers_are_looked_for_where_they_are_unpacked() -> None:
    [version] = re.findall(r"^ARG ORT_HEADERS=1\.(\d+)\.", _TEXT, re.MULTILINE)
    assert int(version) >= tools._API
    assert Path("/opt/onnxruntime/include") in tools._ROOTS
    assert "--directory /opt/onnxruntime --strip-components 1" in _TEXT


def test_packages_of_the_extras_are_installed() -> None:
    """Pictures, safetensors and text are read in the container as they are with the extras."""
    extras = (_ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package in ("pillow", "safetensors", "tokenizers"):
        assert f'"{package}>=' in extras
        assert re.search(rf"^    pip install .*\b{package}\b", _TEXT, re.MULTILINE)
