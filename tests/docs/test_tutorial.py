"""The tutorial, followed to the letter: its files are written, its commands and its Python are run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.reference import DOCS

BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.models
def test_every_step_works(tmp_path: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = 0
    for language, title, text in BLOCK.findall((DOCS / "tutorial.md").read_text(encoding="utf-8")):
        if title:
            (tmp_path / title).write_text(text, encoding="utf-8")
        elif language in ("console", "python"):
            commands = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
            for command in [["bash", "-c", c] for c in commands] or [[sys.executable, "-c", text]]:
                ran = subprocess.run(
                    command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
                )
                assert ran.returncode == 0, f"{command[-1]}\n{ran.stdout}\n{ran.stderr}"
                done += 1
    assert done >= 10
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert (tmp_path / "ocr.int8.onnx").stat().st_size < (tmp_path / "ocr.onnx").stat().st_size / 2
