"""The main job as a user types it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.zoo.model import runner
from tests.zoo.silero import SileroSequence

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: the model and calibration samples as .npz files."""
    folder, model = tmp_path_factory.mktemp("user"), SileroSequence()
    (folder / "vad.onnx").write_bytes(model.path().read_bytes())
    (folder / "samples").mkdir()
    for i, sample in enumerate(model.calibration(8)):
        np.savez(folder / "samples" / f"{i}.npz", allow_pickle=False, **sample)
    return folder


def qcompile(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("qcompile"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)


def test_compile_report_inspect_and_diff(folder: Path) -> None:
    done = qcompile(
        folder, "vad.onnx", "--recipe", "int8-static", "--calib", "samples", "-o", "small.onnx", "--report", "r.html"
    )
    assert done.returncode == 0, done.stderr
    assert "</html>" in (folder / "r.html").read_text(encoding="utf-8")
    model = SileroSequence()
    assert model.metric(runner(folder / "small.onnx")) > 0.95

    inspected = qcompile(folder, "inspect", "small.onnx")
    assert inspected.returncode == 0, inspected.stderr
    compared = qcompile(folder, "diff", "vad.onnx", "small.onnx")
    assert compared.returncode == 0, compared.stderr
    assert "Conv" in compared.stdout


def test_an_existing_output_is_kept(folder: Path) -> None:
    (folder / "kept.onnx").write_text("precious")
    done = qcompile(folder, "vad.onnx", "--calib", "samples", "-o", "kept.onnx")
    assert done.returncode != 0
    assert (folder / "kept.onnx").read_text() == "precious"
    assert "Traceback" not in done.stderr


def test_runs_as_a_module(folder: Path) -> None:
    """Where the folder of scripts is not on the path."""
    command = [sys.executable, "-m", "qcompile", "nothing.onnx", "--recipe", "int8-static"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "no such file" in done.stderr
    assert "Traceback" not in done.stderr
