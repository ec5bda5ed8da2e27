"""Weights stored as int8 for operators that have no int8 kernel: the file shrinks, the arithmetic stays float.

    W = s W_q:   Cast(W_q) -> Mul(s)

W_q: int8 in the shape of W; s: float32, one for each direction and row. The runtime multiplies once, when it
loads the model. Behind a DequantizeLinear it would multiply in every run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import onnx_ir as ir

from qcompile.compiler.codes import Codes
from qcompile.compiler.context import CompileContext
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import Unit
from qcompile.compiler.provenance import stamp
from qcompile.compiler.targets.table import Lowering
from qcompile.compiler.units import planned_as


class LowerWeights(Pass):
    """Write the weights of units that compute in float as codes times scale."""

    name: ClassVar[str] = "lower-weights"
    phase: ClassVar[Phase] = Phase.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        codes = Codes.of(model, context, self.name)
        chosen = planned_as(Lowering.WEIGHTS, model, context)
        for node, unit, row in chosen:
            for position, name in ((row.weight, unit.weight), (row.state_weight, unit.state_weight)):
                if position is not None and name is not None:
                    _store(node, position, replace(unit, weight=name), codes)
        return bool(chosen)


def _store(node: ir.Node, position: int, unit: Unit, codes: Codes) -> None:
    graph, old = node.graph, node.inputs[position]
    assert isinstance(graph, ir.Graph)
    assert old is not None
    quantized, name = codes.context.plan.weights[str(unit.weight), unit.node], codes.weight_name(unit)
    stored = codes.constant(graph, f"{name}_quantized", quantized.codes)
    scale = codes.constant(graph, f"{name}_scale", quantized.params.scale)
    values = codes.node("Cast", [stored], f"{name}_codes", ir.DataType.FLOAT, old)
    values.attributes.add(ir.AttrInt64("to", int(ir.DataType.FLOAT)))
    product = codes.node("Mul", [values.outputs[0], scale], f"{name}_restored", ir.DataType.FLOAT, old)
    for made in (values, product):
        stamp(made, codes.made_by, [node])
    graph.insert_before(node, [values, product])
    node.replace_input_with(position, product.outputs[0])
