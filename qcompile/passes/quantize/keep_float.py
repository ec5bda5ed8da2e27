"""Nodes that the user keeps in float: the option `keep-float` of the passes that place.

No later pass may give them a low-precision form, whatever it measures.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import nodes
from qcompile.compiler.provenance import sources


def kept_by(node: ir.Node, patterns: Sequence[str]) -> str:
    """Why a node stays float, if one of the patterns (with * and ?) names it or a node that went into it."""
    pattern = next((p for p in patterns if _names(node, p)), None)
    return "" if pattern is None else f"kept float by the option keep-float ('{pattern}')"


def pin(model: ir.Model, patterns: Sequence[str], context: CompileContext, placing: str) -> None:
    """Pin the nodes that the patterns name, and say so where one names none."""
    for pattern in patterns:
        matched = [str(node.name) for node in nodes(model) if _names(node, pattern)]
        context.plan.pinned.update(matched)
        if not matched:
            context.notice(f"no node is called '{pattern}' (option keep-float of {placing})")


def _names(node: ir.Node, pattern: str) -> bool:
    return bool(fnmatch.filter([str(node.name), *sources(node)], pattern))
