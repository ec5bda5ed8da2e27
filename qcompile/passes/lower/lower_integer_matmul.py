"""Linear layers whose output stays float, as one integer product of ONNX Runtime.

    Y = s_x s_w (X_q - z_x) W_q + b   =   com.microsoft::MatMulIntegerToFloat(X_q, W_q, s_x, s_w, z_x, z_w, b)

X_q: uint8 [..., K]; W_q: int8 [K, N], s_w: float32 [N]; b: float32 [N] or absent; Y: float32 [..., N].
The bias Add that belongs to the unit becomes an input of the product, which saves a pass over Y.
Source: ONNX Runtime's contrib operators.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from qcompile.compiler.codes import Codes
from qcompile.compiler.context import CompileContext
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import Unit
from qcompile.compiler.provenance import stamp
from qcompile.compiler.targets.table import Lowering
from qcompile.compiler.units import bias_add, planned_as


class LowerIntegerMatMul(Pass):
    """Write the units that the target wants as MatMulIntegerToFloat."""

    name: ClassVar[str] = "lower-integer-matmul"
    phase: ClassVar[Phase] = Phase.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        codes = Codes.of(model, context, self.name)
        chosen = planned_as(Lowering.INTEGER_MATMUL, model, context)
        for node, unit, _ in chosen:
            _lower(node, unit, codes)
        if chosen:
            model.graph.opset_imports["com.microsoft"] = 1
        return bool(chosen)


def _lower(node: ir.Node, unit: Unit, codes: Codes) -> None:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    activation, name = node.inputs[0], unit.inputs[0]
    assert activation is not None
    assert name is not None
    data = codes.quantized(graph, activation, name)
    weight, weight_scale, weight_zero = codes.weight(graph, unit)
    scale, zero = codes.scale_and_zero(graph, name, codes.context.plan.tensors[name])
    last: ir.Node = node
    bias: ir.Value | None = None
    if unit.bias is not None:
        last, bias = bias_add(node)
    old = last.outputs[0]
    product = ir.Node(
        "com.microsoft",
        "MatMulIntegerToFloat",
        [data, weight, scale, weight_scale, zero, weight_zero, bias],
        name=codes.unique(unit.lowered),
        outputs=[ir.Value(type=old.type, shape=old.shape)],
    )
    stamp(product, codes.made_by, [node, *([last] if last is not node else [])])
    codes.replace(graph, node, [node] if last is node else [node, last], product)
