"""The targets: one capability table per provider."""

from __future__ import annotations

import difflib

from qcompile.compiler.targets.cpu import CPU
from qcompile.compiler.targets.cuda import CUDA
from qcompile.compiler.targets.table import Target
from qcompile.compiler.targets.tensorrt import TENSORRT
from qcompile.errors import UsageError

TARGETS = {t.name: t for t in (CPU, CUDA, TENSORRT)}


def target_named(name: str) -> Target:
    """The target called `name`; raises UsageError with the known names otherwise."""
    if name not in TARGETS:
        close = difflib.get_close_matches(name, TARGETS, n=1)
        raise UsageError(
            f"unknown target '{name}'" + (f"; did you mean '{close[0]}'?" if close else ""),
            hint="targets: " + ", ".join(TARGETS),
        )
    return TARGETS[name]
