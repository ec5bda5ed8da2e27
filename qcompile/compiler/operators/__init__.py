"""The operators of the domain `qcompile`: fused layers that carry their definition in standard operators."""

from qcompile.compiler.operators.catalogue import FAMILIES, catalogue
from qcompile.compiler.operators.definition import DOMAIN, Operand, Operator
from qcompile.compiler.operators.linear24 import linear24, linear24_e4m3, linear24_w8a8
from qcompile.compiler.operators.linear_e4m3 import linear_e4m3
from qcompile.compiler.operators.linear_outliers import linear_outliers
from qcompile.compiler.operators.linear_w4a16 import linear_w4a16
from qcompile.compiler.operators.linear_w8a8 import linear_w8a8
from qcompile.compiler.operators.norm_quant import norm_quant
from qcompile.compiler.operators.quantize_rows import quantize_rows

__all__ = [
    "DOMAIN",
    "FAMILIES",
    "Operand",
    "Operator",
    "catalogue",
    "linear24",
    "linear24_e4m3",
    "linear24_w8a8",
    "linear_e4m3",
    "linear_outliers",
    "linear_w4a16",
    "linear_w8a8",
    "norm_quant",
    "quantize_rows",
]
