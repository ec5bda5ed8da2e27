"""The wheel that carries a built library: what lies inside, and that an installation of it is found."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from qcompile.runtime.ops import places

SOURCE = Path(__file__).parents[3] / "packaging" / "qcompile-ops-cu13"


def wheel(folder: Path, named: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    environment = {**os.environ, places.VARIABLE: named}
    return subprocess.run(
        [*command, "--wheel-dir", str(folder), str(SOURCE)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_library_is_found_where_the_wheel_is_installed(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = wheel(tmp_path, str(library))
    assert done.returncode == 0, done.stderr
    [made] = tmp_path.glob("*.whl")
    assert made.name.startswith("qcompile_ops_cu13-")
    assert "-py3-none-any" not in made.name, "it serves this platform alone"
    installed = tmp_path / "installed"
    with zipfile.ZipFile(made) as archive:
        archive.extractall(installed)
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.delenv(places.VARIABLE, raising=False)
    found = places.find()
    assert found is not None
    assert found.origin == "package qcompile_ops_cu13"
    assert found.path.read_bytes() == library.read_bytes()


def test_without_a_library_no_wheel_is_made(tmp_path: Path) -> None:
    done = wheel(tmp_path, str(tmp_path / "missing.so"))
    assert done.returncode != 0
    assert "qcompile ops build" in done.stderr + done.stdout
    assert not list(tmp_path.glob("*.whl"))
