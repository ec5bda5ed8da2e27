"""Calls of the operators in a graph, and how each computes."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.graph import is_constant
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
    if "W8A8" not in node.op_type and "E4M3" not in node.op_type:
        return Form.FLOAT
    if node.op_type.endswith("Requant"):
        return Form.FULL
    return Form.INPUTS if is_constant(node.inputs[1]) else Form.DYNAMIC
