"""docs/passes.md: every registered pass, in the order of the phases."""

from __future__ import annotations

import inspect
import re
import sys

from qcompile.compiler.passes import Pass, Phase
from tools.reference.markdown import GENERATED, first_sentence, table
from tools.reference.options import options
from tools.reference.registry import package_passes

_HEAD = """
# Passes

A pass is one technique in one file. Its options can be written in a recipe or given as `--set pass.option=value`.
Phases run in the order of this page. A pass that says *same function* leaves what the float model computes unchanged.

"""


def page() -> str:
    """The text of the page."""
    by_phase = {phase: [c for c in package_passes().values() if c.phase is phase] for phase in Phase}
    overview = [
        [f"[`{c.name}`](#{c.name})", phase.value, first_sentence(sys.modules[c.__module__])]
        for phase, classes in by_phase.items()
        for c in classes
    ]
    parts = [GENERATED, _HEAD, table(["Pass", "Phase", "What it does"], overview), "\n"]
    for phase, classes in by_phase.items():
        if classes:
            parts.append(f"\n## {phase.value.capitalize()}\n")
            parts += [_entry(c) for c in classes]
    return "".join(parts)


def _entry(cls: type[Pass]) -> str:
    facts = [
        f"needs {', '.join(sorted(cls.requires))}" if cls.requires else "",
        f"provides {', '.join(sorted(cls.provides))}" if cls.provides else "",
        f"invalidates {', '.join(sorted(cls.invalidates))}" if cls.invalidates else "",
        "same function" if cls.float_equivalent else "",
    ]
    text = f"\n### {cls.name}\n\n*{'; '.join(f for f in facts if f)}*\n" if any(facts) else f"\n### {cls.name}\n"
    text += f"\n```text\n{_docstrings(cls)}\n```\n"
    rows = [[f"`{o.name}`", o.kind, f"`{o.default}`", o.meaning] for o in options(cls)]
    return text + (f"\n{table(['Option', 'Values', 'Default', 'Meaning'], rows)}\n" if rows else "")


def _docstrings(cls: type[Pass]) -> str:
    """What the module and the class say, without the options, which the table shows."""
    own = re.sub(r"\n*Options:\n(    .*\n?)+", "\n", inspect.getdoc(cls) or "")
    return f"{inspect.getdoc(sys.modules[cls.__module__])}\n\n{own}".strip()
