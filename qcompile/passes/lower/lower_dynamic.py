"""Linear layers whose input is quantized per tensor each time they run.

    s_x, z_x from [min X, max X] of this run,   Y = s_x s_w (X_q - z_x) W_q + b

as com.microsoft::DynamicQuantizeMatMul(X, W_q, s_w, z_w = 0, b). X: float32 [..., K]; W_q: int8 [K, N],
s_w: float32 [N]; b: float32 [N] or absent. The weight of a transposed Gemm is transposed here.
Source: ONNX DynamicQuantizeLinear and ONNX Runtime's contrib operators.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.compiler.codes import Codes
from qcompile.compiler.context import CompileContext
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import Unit
from qcompile.compiler.provenance import stamp
from qcompile.compiler.targets.table import Lowering
from qcompile.compiler.units import bias_add, planned_as


class LowerDynamic(Pass):
    """Write the units of the form DYNAMIC as operators that quantize their input themselves."""

    name: ClassVar[str] = "lower-dynamic"
    phase: ClassVar[Phase] = Phase.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        codes = Codes.of(model, context, self.name)
        chosen = planned_as(Lowering.DYNAMIC, model, context)
        for node, unit, _ in chosen:
            _lower_product(node, unit, codes)
        if chosen:
            model.graph.opset_imports["com.microsoft"] = 1
        return bool(chosen)


def _lower_product(node: ir.Node, unit: Unit, codes: Codes) -> None:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    quantized, name = codes.context.plan.weights[str(unit.weight), unit.node], codes.weight_name(unit)
    matrix, ending = quantized.codes, "quantized"
    if node.attributes.get_int("transB", 0):
        matrix, ending = np.ascontiguousarray(matrix.T), "transposed"
    weight = codes.constant(graph, f"{name}_{ending}", matrix)
    scale = codes.constant(graph, f"{name}_scale", quantized.params.scale)
    last, bias = node, node.inputs[2] if len(node.inputs) > 2 else None
    if unit.bias is not None:
        last, bias = bias_add(node)
    bias = codes.row(graph, bias, matrix.shape[1])
    old = last.outputs[0]
    product = ir.Node(
        "com.microsoft",
        "DynamicQuantizeMatMul",
        [node.inputs[0], weight, scale, *([None, bias] if bias is not None else [])],
        name=codes.unique(unit.lowered),
        outputs=[ir.Value(type=old.type, shape=old.shape)],
    )
    chain = [node] if last is node else [node, last]
    stamp(product, codes.made_by, chain)
    codes.replace(graph, node, chain, product)
