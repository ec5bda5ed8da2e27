"""Where a library of kernels may lie: named by the user, in an installed package, or built here."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "QCOMPILE_OPS"
"""The environment variable that names a library, or says `off`: run the definitions of the operators instead."""

CUSPARSELT = "QCOMPILE_CUSPARSELT"
"""The environment variable that tells the library where cuSPARSELt is."""

PACKAGES = ("qcompile_ops_cu13", "qcompile_ops")
"""Python packages that may bring a library, best first."""

FILE = {"darwin": "libqcompile_ops.dylib", "win32": "qcompile_ops.dll"}.get(sys.platform, "libqcompile_ops.so")

SOURCES = Path(__file__).parent
"""The folder with CMakeLists.txt and native/."""


@dataclass(frozen=True)
class Place:
    """A library's file, and how it was found."""

    path: Path
    origin: str


def find() -> Place | None:
    """The library to use: the one that QCOMPILE_OPS names, else that of a package, else one built here."""
    if _switched_off():
        return None
    if named := os.environ.get(VARIABLE):
        return Place(Path(named), VARIABLE)
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(folder) / FILE).is_file():
                return Place(Path(folder) / FILE, f"package {package}")
    built = [path for path in sorted(cache().glob(f"{sources_digest()}-*/{FILE}")) if path.is_file()]
    if not built:
        return None
    with_cuda = [path for path in built if "-cuda" in path.parent.name]
    return Place(max(with_cuda or built, key=lambda path: path.stat().st_mtime), "built here")


def cusparselt() -> Path | None:
    """NVIDIA's cuSPARSELt where a Python package brings it: the system's loader does not look there."""
    spec = importlib.util.find_spec("nvidia")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    found = (path for folder in folders for path in sorted(Path(folder).glob("*/lib/libcusparseLt.so.0"), reverse=True))
    return next(found, None)


def why_none() -> str:
    """Why `find` gives no library."""
    return f"{VARIABLE} is off" if _switched_off() else "no library of kernels is here: qcompile ops build"


def _switched_off() -> bool:
    return os.environ.get(VARIABLE) == "off"


def cache() -> Path:
    """The user's folder of libraries built here."""
    home = Path.home()
    default = {"darwin": home / "Library" / "Caches", "win32": home / "AppData" / "Local"}
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else default.get(sys.platform, home / ".cache")) / "qcompile" / "ops"


def sources_digest() -> str:
    """A digest of all sources: a library that was built from others is not used."""
    digest = hashlib.sha256()
    for path in sorted((SOURCES / "native").rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update((SOURCES / "CMakeLists.txt").read_bytes())
    return digest.hexdigest()[:16]
