"""Keep the runtime from fusing what runs faster, or more exactly, apart.

    Add(a, b) -> LayerNormalization   becomes   Sum(a, b) -> LayerNormalization
    DQ -> Conv(x, float w) -> Q       becomes   DQ -> Conv(x, float w) -> Sum -> Q

Sum of two tensors is the same function bit for bit, but no fusion looks for it; Sum of one hands it on.
The second keeps a float operator float where the runtime would quantize its weight by itself. Which
pairs to keep apart, and what was measured, stands in the target's table.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from qcompile.compiler.codes import Codes
from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import is_constant, nodes
from qcompile.compiler.passes import Pass, Phase
from qcompile.compiler.provenance import stamp
from qcompile.compiler.targets.table import Detour


class DetourSlowFusions(Pass):
    """Replace the first operator of every pair that the target's table wants apart."""

    name: ClassVar[str] = "detour-slow-fusions"
    phase: ClassVar[Phase] = Phase.LOWER

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        found = [(n, d) for n in nodes(model) for d in context.target.detours if _matches(n, d)]
        for node, detour in found:
            node.op_type = detour.instead
        codes = Codes.of(model, context, self.name)
        swallowed = [n for n in nodes(model) if n.op_type in context.target.swallows and _is_swallowed(n)]
        for node in swallowed:
            _hand_on(node, codes)
        return bool(found or swallowed)


def _matches(node: ir.Node, detour: Detour) -> bool:
    """Whether the second operator of the pair, and nothing else, reads `node`'s result."""
    if node.op_type != detour.first or node.domain != "" or node.outputs[0].is_graph_output():
        return False
    return [use.node.op_type for use in node.outputs[0].uses()] == [detour.second]


def _is_swallowed(node: ir.Node) -> bool:
    """Whether a float weight stands between codes: its data dequantized, its result quantized."""
    data = node.inputs[0].producer() if node.inputs[0] is not None else None
    return (
        node.domain == ""
        and data is not None
        and data.op_type == "DequantizeLinear"
        and is_constant(node.inputs[1])
        and any(_leads_to_codes(use.node) for use in node.outputs[0].uses())
    )


def _leads_to_codes(reader: ir.Node) -> bool:
    """Directly, or through an activation that the range of the codes may express."""
    if reader.op_type in ("Relu", "Clip"):
        return any(use.node.op_type == "QuantizeLinear" for use in reader.outputs[0].uses())
    return reader.op_type == "QuantizeLinear"


def _hand_on(node: ir.Node, codes: Codes) -> None:
    output, graph = node.outputs[0], node.graph
    assert isinstance(graph, ir.Graph)
    assert output.type is not None
    passed = codes.node("Sum", [output], f"{output.name}_float", output.type.dtype, output)
    output.replace_all_uses_with(passed.outputs[0])
    passed.replace_input_with(0, output)
    graph.insert_after(node, passed)
    stamp(passed, codes.made_by, [node])
