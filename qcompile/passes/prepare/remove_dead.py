"""Nodes that nobody reads and nodes that do nothing go away."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant, graphs
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.passes.prepare.dimensions import dimension
from qcompile.passes.prepare.surgery import bypass, remove_unread


class RemoveDead(Pass):
    """Remove dead nodes, unused initializers, and operators without effect, in all bodies.

    Without effect are: Identity, Dropout at inference, a Cast to the type it has, a Reshape, Expand,
    Flatten or Squeeze to the shape it has, a Transpose that keeps the order, a Concat of one, a Pad by zero.
    """

    name: ClassVar[str] = "remove-dead"
    phase: ClassVar[Phase] = Phase.PREPARE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.SHAPES})
    float_equivalent: ClassVar[bool] = True

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        modified = False
        for graph in list(graphs(model)):
            for node in list(graph):
                if node.inputs and node.inputs[0] is not None and _is_idle(node):
                    modified |= bypass(node, node.inputs[0])
        for graph in reversed(list(graphs(model))):
            modified |= remove_unread(graph)
        return modified


def _is_idle(node: ir.Node) -> bool:
    if node.domain != "":
        return False
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    match node.op_type:
        case "Identity":
            return True
        case "Dropout":
            training = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else False
            return training is not None and not training
        case "Cast":
            return source.dtype is not None and source.dtype == node.attributes["to"].as_int()
        case "Reshape" | "Expand" | "Flatten" | "Squeeze":
            return _same_shape(source, result)
        case "Transpose":
            order = node.attributes.get_ints("perm", ())
            return bool(order) and list(order) == sorted(order)
        case "Concat":
            return len(node.inputs) == 1
        case "Pad":
            pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
            return pads is not None and not pads.any()
    return False


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Equal rank and equal dimensions, each known by number or by one name."""
    if a.shape is None or b.shape is None:
        return False
    before, after = [dimension(d) for d in a.shape], [dimension(d) for d in b.shape]
    return None not in before and before == after
