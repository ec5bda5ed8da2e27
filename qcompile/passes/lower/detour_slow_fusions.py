"""Keep the runtime from fusing what runs faster, or more exactly, or at all, apart.

    Add(a, b) -> LayerNormalization   becomes   Sum(a, b) -> LayerNormalization
    DQ -> Conv(x, float w) -> Q       becomes   DQ -> Conv(x, float w) -> Sum -> Q
    Clip -> Q to FP8                  becomes   Clip -> Sum -> Q to FP8
    Reshape -> Q to FP8 -> operator   becomes   Reshape -> Sum -> Q to FP8 -> operator

Sum of two tensors is the same function bit for bit, but no fusion looks for it; Sum of one hands it on.
The second keeps a float operator float where the runtime would quantize its weight by itself. With the last two
pairs a model does not load. ONNX Runtime 1.31 compares the bounds with the range of the codes, whatever the
provider, and knows no FP8; and it moves the Q in front of operators that move values, of which none takes FP8.
Which other pairs to keep apart, and what was measured, stands in the target's table.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from qcompile.compiler.codes import Codes
from qcompile.compiler.context import CompileContext
from qcompile.compiler.formats import FP8_E4M3, FP8_E5M2
from qcompile.compiler.graph import is_constant, nodes
from qcompile.compiler.operators.definition import DOMAIN
from qcompile.compiler.passes import Pass, Phase
from qcompile.compiler.provenance import stamp
from qcompile.compiler.targets.table import Detour

_MOVES = {"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators behind which the runtime takes a Q back to their input."""


class DetourSlowFusions(Pass):
    """Replace the first operator of every pair that the target's table wants apart."""

    name: ClassVar[str] = "detour-slow-fusions"
    phase: ClassVar[Phase] = Phase.LOWER

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        found = [(n, d) for n in nodes(model) for d in context.target.detours if _matches(n, d)]
        for node, detour in found:
            node.op_type = detour.instead
        codes = Codes.of(model, context, self.name)
        takers = [n for n in nodes(model) if n.op_type in context.target.swallows]
        swallowed = [v for n in takers if (v := _swallowed(n)) is not None]
        unloadable = [n.outputs[0] for n in nodes(model) if _must_stand_apart(n)]
        for value in (*swallowed, *unloadable):
            _hand_on(value, codes)
        return bool(found or swallowed or unloadable)


def _matches(node: ir.Node, detour: Detour) -> bool:
    """Whether the second operator of the pair, and nothing else, reads `node`'s result."""
    if node.op_type != detour.first or node.domain != "" or node.outputs[0].is_graph_output():
        return False
    return [use.node.op_type for use in node.outputs[0].uses()] == [detour.second]


def _must_stand_apart(node: ir.Node) -> bool:
    """Whether `node` before a QuantizeLinear to FP8 keeps the model from loading."""
    if node.op_type != "Clip" and node.op_type not in _MOVES:
        return False
    kinds = {f.dtype for f in (FP8_E4M3, FP8_E5M2)}
    quantized = [r.outputs[0] for use in node.outputs[0].uses() if (r := use.node).op_type == "QuantizeLinear"]
    fp8 = [v for v in quantized if v.dtype in kinds]
    return bool(fp8) and (node.op_type == "Clip" or any(use.node.domain == DOMAIN for v in fp8 for use in v.uses()))


def _swallowed(node: ir.Node) -> ir.Value | None:
    """The result of a float weight between codes, behind its activation: all of its readers quantize it."""
    data = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node.domain != "" or data is None or data.op_type != "DequantizeLinear" or not is_constant(node.inputs[1]):
        return None
    value = node.outputs[0]
    readers = [use.node for use in value.uses()]
    if [r.op_type for r in readers] in (["Relu"], ["Clip"]):
        value = readers[0].outputs[0]
        readers = [use.node for use in value.uses()]
    return value if {r.op_type for r in readers} == {"QuantizeLinear"} else None


def _hand_on(value: ir.Value, codes: Codes) -> None:
    """Put a Sum of one tensor between `value` and its readers."""
    producer = value.producer()
    assert producer is not None
    assert value.type is not None
    assert isinstance(producer.graph, ir.Graph)
    passed = codes.node("Sum", [value], f"{value.name}_float", value.type.dtype, value)
    value.replace_all_uses_with(passed.outputs[0])
    passed.replace_input_with(0, value)
    producer.graph.insert_after(producer, passed)
    stamp(passed, codes.made_by, [producer])
