"""Nodes that the user keeps in float: the option `keep-float` of the passes that place.

No later pass may give them a low-precision form, whatever it measures.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import nodes


def kept_by(name: str, patterns: Sequence[str]) -> str:
    """Why a node stays float, if one of the patterns (with * and ?) names it."""
    pattern = next((p for p in patterns if fnmatch.fnmatchcase(name, p)), None)
    return "" if pattern is None else f"kept float by the option keep-float ('{pattern}')"


def pin(model: ir.Model, patterns: Sequence[str], context: CompileContext, placing: str) -> None:
    """Pin the nodes that the patterns name, and say so where one names none."""
    names = [str(node.name) for node in nodes(model)]
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        context.plan.pinned.update(matched)
        if not matched:
            context.notice(f"no node is called '{pattern}' (option keep-float of {placing})")
