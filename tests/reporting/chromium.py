"""Loading a page in a headless Chromium: its picture, its DOM after scripts ran, its console."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
]  # fmt: skip


@dataclass(frozen=True)
class Page:
    """What a Chromium made of a page."""

    dom: str
    console: list[str]


def chromium() -> str:
    """The browser on PATH. Where there is none the test is skipped, or fails when CI is set."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail("CI has no chromium, chromium-browser or google-chrome on PATH; install one")
    pytest.skip("no Chromium on PATH")


def load(page: Path, *flags: str) -> Page:
    """Open `page` and return its DOM and console lines."""
    done = _run(page, "--dump-dom", *flags)
    return Page(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])


def screenshot(page: Path, picture: Path, width: int, height: int, *, dark: bool = False) -> Path:
    """Write a PNG of `page`."""
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    _run(page, f"--screenshot={picture}", f"--window-size={width},{height}", *theme)
    return picture


def _run(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium(), *FLAGS, f"--user-data-dir={profile}", *flags, page.resolve().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
