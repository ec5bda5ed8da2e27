"""The operators of the domain `qcompile`: fused layers that carry their definition in standard operators."""

from qcompile.compiler.operators.definition import DOMAIN, Operand, Operator
from qcompile.compiler.operators.linear_w8a8 import linear_w8a8
from qcompile.compiler.operators.quantize_rows import quantize_rows

__all__ = ["DOMAIN", "Operand", "Operator", "linear_w8a8", "quantize_rows"]
