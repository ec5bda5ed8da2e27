"""qcompile: the smallest, fastest ONNX graph that still gives the same answers, with the proof."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcompile.compiler.artifact import Artifact as Artifact
    from qcompile.errors import QCompileError as QCompileError
    from qcompile.frontends.api import calibrate as calibrate
    from qcompile.frontends.api import compile as compile
    from qcompile.frontends.api import load as load
    from qcompile.frontends.evaluation import Evaluation as Evaluation
    from qcompile.frontends.evaluation import evaluate as evaluate
    from qcompile.frontends.export import export as export
    from qcompile.frontends.text import Text as Text
    from qcompile.runtime.session import Session as Session

__version__ = "0.1.0"

_WHERE = {
    "calibrate": "qcompile.frontends.api",
    "compile": "qcompile.frontends.api",
    "evaluate": "qcompile.frontends.evaluation",
    "export": "qcompile.frontends.export",
    "load": "qcompile.frontends.api",
    "Artifact": "qcompile.compiler.artifact",
    "Evaluation": "qcompile.frontends.evaluation",
    "Session": "qcompile.runtime.session",
    "Text": "qcompile.frontends.text",
    "QCompileError": "qcompile.errors",
}
__all__ = [
    "Artifact",
    "Evaluation",
    "QCompileError",
    "Session",
    "Text",
    "__version__",
    "calibrate",
    "compile",
    "evaluate",
    "export",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import on first use: `import qcompile` and `qcompile --help` stay fast."""
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'qcompile' has no attribute '{name}'")
