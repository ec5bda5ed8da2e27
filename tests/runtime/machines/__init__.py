"""Machines with some of what a GPU provider needs: folders of libraries that stand in for NVIDIA's.

The driver is a stub that answers as told; what ONNX Runtime's own providers then say of the rest is real.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_DRIVER = Path(__file__).with_name("driver.c")


def compile_library(source: str, folder: Path, soname: str, *linked: str) -> None:
    """A shared library made of C in `folder`."""
    (folder / f"{soname}.c").write_text(source)
    options = ["-shared", "-fPIC", "-w", f"-Wl,-soname,{soname}"]
    subprocess.run(["gcc", *options, "-o", str(folder / soname), str(folder / f"{soname}.c"), *linked], check=True)


def driver(folder: Path) -> Path:
    """A folder with a driver for one GPU, whose answers are environment variables."""
    folder.mkdir(exist_ok=True)
    compile_library(_DRIVER.read_text(), folder, "libcuda.so.1")
    return folder


def ask(question: str, folders: list[Path], environment: Mapping[str, str], *arguments: str) -> Any:
    """What `tests.runtime.machines.questions` answers on a machine where libraries lie in `folders` alone."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.machines.questions", question, *arguments],
        env={**os.environ, **environment, "LD_LIBRARY_PATH": ":".join(map(str, folders))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
