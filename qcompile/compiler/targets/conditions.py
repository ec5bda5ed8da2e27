"""Questions about a node that rows of several targets ask."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.graph import is_constant, rank
from qcompile.compiler.targets.table import Condition


def weight_is_second(node: ir.Node) -> bool:
    return len(node.inputs) > 1 and is_constant(node.inputs[1])


def gemm_axis(node: ir.Node) -> int:
    """The axis of a Gemm's weight that counts outputs."""
    return 0 if node.attributes.get_int("transB", 0) else 1


def last_axis(node: ir.Node) -> int:
    """The axis of a MatMul's weight that counts outputs."""
    return (rank(node.inputs[1]) or 2) - 1


def _is_row(node: ir.Node) -> bool:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return bias is None or bias.shape is None or all(dim == 1 for dim in bias.shape[:-1])


CONSTANT_WEIGHT = Condition("its weight is not a constant", weight_is_second)
CONSTANT_BIAS = Condition(
    "its bias is not a constant", lambda n: len(n.inputs) < 3 or n.inputs[2] is None or is_constant(n.inputs[2])
)
ROW_BIAS = Condition("its bias is not one value for each output column", _is_row)
MATRIX_WEIGHT = Condition(
    "its weight is not one matrix: no kernel reads codes of a stack of them, as of experts",
    lambda n: rank(n.inputs[1]) == 2,
)
PLAIN_GEMM = Condition(
    "an int8 Gemm needs alpha = beta = 1 and transA = 0",
    lambda n: (
        n.attributes.get_float("alpha", 1.0) == 1.0
        and n.attributes.get_float("beta", 1.0) == 1.0
        and not n.attributes.get_int("transA", 0)
    ),
)
LOOKS_UP_ROWS = (
    Condition("it does not look up rows (axis 0)", lambda n: n.attributes.get_int("axis", 0) == 0),
    Condition(
        "its table is not a float32 matrix",
        lambda n: rank(n.inputs[0]) == 2 and n.inputs[0] is not None and n.inputs[0].dtype == ir.DataType.FLOAT,
    ),
)
