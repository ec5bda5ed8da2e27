"""Which activation function alone reads a value, and the nodes that compute it.

Relu(x)     Gelu(x) or x * (1 + erf(x / sqrt 2)) / 2 spelled out     x * Sigmoid(x)
"""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.operators.linear import Activation
from qcompile.passes.prepare.fuse_activations import erf_gelu

_OF_ERF_GELU = {"Mul", "Div", "Add", "Erf"}


def following_activation(value: ir.Value) -> tuple[Activation, list[ir.Node]]:
    """The activation behind `value` and its nodes, the one that gives the result last; ("", []) without one."""
    if value.is_graph_output():
        return "", []
    readers = [use.node for use in value.uses()]
    if any(r.graph is not _graph_of(value) or r.domain != "" for r in readers):
        return "", []
    if len(readers) == 1:
        return _of_one(readers[0])
    if {r.op_type for r in readers} == {"Sigmoid", "Mul"} and len(readers) == 2:
        gate, product = sorted(readers, key=lambda r: r.op_type, reverse=True)
        alone = len(gate.outputs[0].uses()) == 1 and not gate.outputs[0].is_graph_output()
        return ("Silu", [gate, product]) if alone and gate.outputs[0] in product.inputs else ("", [])
    spelled = _erf_gelu_of(value)
    return ("Gelu", spelled) if spelled else ("", [])


def _of_one(reader: ir.Node) -> tuple[Activation, list[ir.Node]]:
    match reader.op_type:
        case "Relu":
            return "Relu", [reader]
        case "Gelu" if reader.attributes.get_string("approximate", "none") == "none":
            return "Gelu", [reader]
        case "Swish" if reader.attributes.get_float("alpha", 1.0) == 1.0:
            return "Silu", [reader]
    return "", []


def _erf_gelu_of(value: ir.Value) -> list[ir.Node]:
    """The nodes of a Gelu of `value` that is spelled out, or none."""
    found: list[ir.Node] = []
    waiting = [value]
    while waiting:
        current = waiting.pop(0)
        if current.is_graph_output():
            return []
        for node in (use.node for use in current.uses()):
            if node in found:
                continue
            if node.op_type not in _OF_ERF_GELU or node.domain != "" or node.graph is not _graph_of(value):
                return []
            found.append(node)
            if erf_gelu(node) is value:
                continue
            waiting.append(node.outputs[0])
    last = [node for node in found if erf_gelu(node) is value]
    return [n for n in found if n is not last[0]] + last if len(last) == 1 else []


def _graph_of(value: ir.Value) -> ir.Graph | ir.Function | None:
    producer = value.producer()
    return producer.graph if producer is not None else None
