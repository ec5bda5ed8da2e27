"""Keep the runtime from fusing what runs faster apart.

    Add(a, b) -> LayerNormalization   becomes   Sum(a, b) -> LayerNormalization

Sum of two tensors is the same function bit for bit, but no fusion looks for it. Which pairs to keep
apart, and what was measured, stands in the target's table.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import nodes
from qcompile.compiler.passes import Pass, Phase
from qcompile.compiler.targets.table import Detour


class DetourSlowFusions(Pass):
    """Replace the first operator of every pair that the target's table wants apart."""

    name: ClassVar[str] = "detour-slow-fusions"
    phase: ClassVar[Phase] = Phase.LOWER

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        found = [(n, d) for n in nodes(model) for d in context.target.detours if _matches(n, d)]
        for node, detour in found:
            node.op_type = detour.instead
        return bool(found)


def _matches(node: ir.Node, detour: Detour) -> bool:
    """Whether the second operator of the pair reads `node`'s result."""
    if node.op_type != detour.first or node.domain != "":
        return False
    return any(use.node.op_type == detour.second for use in node.outputs[0].uses())
