"""What a real process leaves behind when it is stopped or the disk fills: nothing, and a clear line."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.frontends.models import WIDTH, linear, npz_folder, save

QCOMPILE = [sys.executable, "-c", "from qcompile.frontends.cli.main import main; main()"]

SLOW = f"""
import time, pathlib
import numpy as np

def samples():
    for _ in range(1000):
        pathlib.Path(__file__).with_name("started").touch()
        time.sleep(0.05)
        yield {{"x": np.zeros((1, {WIDTH}), np.float32)}}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(linear(), tmp_path / "m.onnx")


def test_ctrl_c_leaves_nothing(model: Path, tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    command = [*QCOMPILE, str(model), "--calib", f"{script}:samples"]

    def heeded() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background of a shell inherits that it is ignored

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeded
    ) as process:
        for _ in range(600):
            if (tmp_path / "started").exists():
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == "interrupted: nothing was written."
    assert out == ""
    assert [p.name for p in tmp_path.glob("*.onnx*")] == ["m.onnx"]


def test_a_disk_that_fills_leaves_nothing(model: Path, tmp_path: Path) -> None:
    data = npz_folder(tmp_path / "data", 2)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    done = subprocess.run(
        [*QCOMPILE, str(model), "--calib", str(data)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=small_files,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1, done.stderr
    assert "error: cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "m.onnx"]


def test_an_output_below_a_file(model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [*QCOMPILE, str(model), "--calib", "synthetic", "-o", str(model / "out.onnx")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "folder of the output does not exist" in done.stderr
    assert "Traceback" not in done.stderr
