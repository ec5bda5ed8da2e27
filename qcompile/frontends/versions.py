"""Versions of what a compiled model depends on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import qcompile

_PACKAGES = ("numpy", "onnx", "onnx-ir")
_RUNTIMES = ("onnxruntime-gpu", "onnxruntime")


def versions() -> dict[str, str]:
    """Package name -> version, for the manifest and the report."""
    found = {"qcompile": qcompile.__version__}
    found |= {name: version(name) for name in _PACKAGES}
    for name in _RUNTIMES:
        try:
            return found | {"onnxruntime": version(name)}
        except PackageNotFoundError:
            continue
    return found
