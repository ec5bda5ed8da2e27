"""Every node and every value gets a name of its own."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import graphs
from qcompile.compiler.passes import Fact, Pass, Phase


class UniqueNames(Pass):
    """Make names unique over the whole model, control-flow bodies included.

    Plans, reports and statistics speak of nodes and values by name. ONNX allows two branches of an
    If to use one name, and nodes to have none. Inputs and outputs of the main graph keep theirs.
    """

    name: ClassVar[str] = "unique-names"
    phase: ClassVar[Phase] = Phase.PREPARE
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES})
    float_equivalent: ClassVar[bool] = True

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        taken_values = {v.name for v in (*model.graph.inputs, *model.graph.outputs)}
        kept = set(model.graph.inputs) | set(model.graph.outputs)
        taken_nodes: set[str | None] = set()
        modified = False
        for graph in graphs(model):
            values = [*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)]
            for value in dict.fromkeys(values):
                if value not in kept and _is_used(value):
                    modified |= _rename(value, taken_values, "value")
            for node in graph:
                modified |= _rename(node, taken_nodes, node.op_type)
        return modified


def _is_used(value: ir.Value) -> bool:
    """An output without a name is one that the node was asked not to compute: it must stay nameless."""
    return bool(value.name) or bool(value.uses()) or value.is_graph_output()


def _rename(item: ir.Value | ir.Node, taken: set[str | None], default: str) -> bool:
    base = item.name or default
    name, number = base, 0
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name)
    if name == item.name:
        return False
    item.name = name
    return True
