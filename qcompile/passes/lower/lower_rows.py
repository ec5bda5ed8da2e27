"""Embedding tables as int8 rows with a scale for each row.

    E[i] = s_i * Q[i]:   Gather(Q, ids) -> Cast -> Mul(Gather(s, ids))

Q: int8 [V, D], s: float32 [V, 1], ids: integers of any shape; result float32 [..., D]. Only the rows
that are looked up are ever dequantized. Source: row-wise quantized embedding lookup as in
recommendation models (Guan et al., "Post-Training 4-bit Quantization on Embedding Tables", 2019).
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
from qcompile.compiler.units import planned_as


class LowerRows(Pass):
    """Write table look-ups over int8 rows."""

    name: ClassVar[str] = "lower-rows"
    phase: ClassVar[Phase] = Phase.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        codes = Codes.of(model, context, self.name)
        chosen = planned_as(Lowering.ROWS, model, context)
        for node, unit, _ in chosen:
            _lower(node, unit, codes)
        return bool(chosen)


def _lower(node: ir.Node, unit: Unit, codes: Codes) -> None:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    table, _, _ = codes.weight(graph, unit)
    params = codes.context.plan.weights[str(unit.weight), unit.node].params
    scales = codes.constant(graph, f"{table.name}_row_scale", params.scale.reshape(-1, 1))
    ids, old = node.inputs[1], node.outputs[0]
    rows = codes.node("Gather", [table, ids], f"{old.name}_rows", ir.DataType.INT8, old)
    values = codes.node("Cast", rows.outputs, f"{old.name}_codes", ir.DataType.FLOAT, old)
    values.attributes.add(ir.AttrInt64("to", int(ir.DataType.FLOAT)))
    factors = codes.node("Gather", [scales, ids], f"{old.name}_row_scale", ir.DataType.FLOAT, old)
    factors.outputs[0].shape = None
    product = ir.Node(
        "",
        "Mul",
        [values.outputs[0], factors.outputs[0]],
        name=codes.unique(unit.lowered),
        outputs=[ir.Value(type=old.type, shape=old.shape)],
    )
    for made in (rows, values, factors, product):
        stamp(made, codes.made_by, [node])
    graph.insert_before(node, [rows, values, factors])
    codes.replace(graph, node, [node], product)
