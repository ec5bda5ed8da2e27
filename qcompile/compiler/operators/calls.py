"""Calls of the operators in a graph, and how each computes."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.graph import is_constant, nodes
from qcompile.compiler.operators.definition import DOMAIN
from qcompile.compiler.plan import Form


def is_linear(node: ir.Node) -> bool:
    """Whether `node` calls one of the linear layers."""
    return node.domain == DOMAIN and node.op_type.startswith("Linear")


def is_row_quantizer(node: ir.Node) -> bool:
    """Whether `node` does nothing but quantize rows."""
    return node.domain == DOMAIN and node.op_type.startswith("QuantizeRows")


def form_of(node: ir.Node) -> Form:
    """How a call of a linear layer computes: its name says it, and where the scales of its codes come from."""
    if "W4A16" in node.op_type:
        return Form.WEIGHTS
    if "Outliers" in node.op_type:
        return Form.DYNAMIC
    if "W8A8" not in node.op_type and "E4M3" not in node.op_type:
        return Form.FLOAT
    if node.op_type.endswith("Requant"):
        return Form.FULL
    return Form.INPUTS if is_constant(node.inputs[1]) else Form.DYNAMIC


def forget_unused(model: ir.Model) -> None:
    """Remove the bodies of operators that nobody calls any more."""
    called = {(node.domain, node.op_type) for node in nodes(model)}
    for key in [k for k in model.functions if k[0] == DOMAIN and k[:2] not in called]:
        del model.functions[key]
