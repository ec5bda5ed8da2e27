"""The cheap check after every pass: is this still a graph? (The full ONNX checker runs once, at the end.)"""

from __future__ import annotations

import onnx_ir as ir


def check_graph(model: ir.Model) -> list[str]:
    """Faults of the graph, empty when it is valid: undefined or doubly defined values, wrong order."""
    faults: list[str] = []
    _check(model.graph, set(), faults)
    return faults


def _check(graph: ir.Graph, outer: set[ir.Value], faults: list[str]) -> None:
    defined = outer | set(graph.inputs) | set(graph.initializers.values())
    names: set[str] = set()
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in defined:
                faults.append(
                    f"node '{node.name}' ({node.op_type}) reads '{value.name}', which is not defined before it"
                )
        for attribute in node.attributes.values():
            for body in _bodies(attribute):
                _check(body, defined, faults)
        for value in node.outputs:
            if value.name and value.name in names:
                faults.append(f"value '{value.name}' is defined twice")
            if value.name:
                names.add(value.name)
            defined.add(value)
    for value in graph.outputs:
        if value not in defined:
            faults.append(f"graph output '{value.name}' is not produced")


def _bodies(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.is_ref():
        return []
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    if attribute.type == ir.AttributeType.GRAPHS:
        return list(attribute.as_graphs())
    return []
