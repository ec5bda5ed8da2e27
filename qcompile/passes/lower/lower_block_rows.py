"""Embedding tables in blocks of 2, 4 or 8 bits, restored row by row, as com.microsoft::GatherBlockQuantized.

    E[i, k] = s[i, b] (Q[i, k] - z[i, b])   for the rows i that are looked up, k in block b

Q: uint8 [V, D bits / 8], the low bits first; s: [V, D / B]; z: packed like Q, or left out where it is 2^(bits - 1).
A table that a MatMulNBits has as its weight too (a head tied to its embedding) is stored once, in that operator's
shape [V, D / B, B bits / 8]; the runtime reshapes it when it loads the model. Source: ONNX Runtime's contrib operators.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from qcompile.compiler.codes import Codes
from qcompile.compiler.context import CompileContext
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import QuantPlan, Unit
from qcompile.compiler.provenance import stamp
from qcompile.compiler.targets.table import Lowering
from qcompile.compiler.units import planned_as
from qcompile.passes.lower.load_time import LoadTime
from qcompile.passes.lower.packing import packed_blocks
from qcompile.passes.lower.stored_scales import stored_scale


class LowerBlockRows(Pass):
    """Write table look-ups over blocks of codes as GatherBlockQuantized."""

    name: ClassVar[str] = "lower-block-rows"
    phase: ClassVar[Phase] = Phase.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        codes = Codes.of(model, context, self.name)
        chosen = planned_as(Lowering.BLOCK_ROWS, model, context)
        for node, unit, _ in chosen:
            _lower(node, unit, codes)
        if chosen:
            model.graph.opset_imports["com.microsoft"] = 1
        return bool(chosen)


def _lower(node: ir.Node, unit: Unit, codes: Codes) -> None:
    graph, plan = node.graph, codes.context.plan
    assert isinstance(graph, ir.Graph)
    owner = plan.units[unit.tied] if unit.tied else unit
    weight, name = plan.weights[str(owner.weight), owner.node], codes.weight_name(owner)
    blocks = packed_blocks(weight)
    rows, depth = blocks.shape
    flat = blocks.codes.reshape(rows, -1)[:, : -(-depth * blocks.bits // 8)]
    if _is_also_multiplied(unit, plan) and flat.size == blocks.codes.size:
        stored = codes.constant(graph, f"{name}_blocks", blocks.codes)
        table = LoadTime(codes, node).reshape(stored, f"{name}_block_rows", flat.shape)
    else:
        table = codes.constant(graph, f"{name}_block_rows", flat)
    scale = stored_scale(codes, node, f"{name}_block_scale", weight.params, blocks.scale)
    zero, old = blocks.zero_point, node.outputs[0]
    points = [codes.constant(graph, f"{name}_block_zero_point", zero)] if zero is not None else []
    lookup = ir.Node(
        "com.microsoft",
        "GatherBlockQuantized",
        [table, node.inputs[1], scale, *points],
        [
            ir.AttrInt64("bits", blocks.bits),
            ir.AttrInt64("block_size", blocks.size),
            ir.AttrInt64("gather_axis", 0),
            ir.AttrInt64("quantize_axis", 1),
        ],
        name=codes.unique(unit.lowered),
        outputs=[ir.Value(type=old.type, shape=old.shape)],
    )
    stamp(lookup, codes.made_by, [node])
    codes.replace(graph, node, [node], lookup)


def _is_also_multiplied(unit: Unit, plan: QuantPlan) -> bool:
    """Whether another unit has the table in the blocks of MatMulNBits."""
    if unit.tied is not None:
        return True
    others = (plan.units[node] for weight, node in plan.weights if weight == unit.weight and node != unit.node)
    return any(other.lowering is Lowering.BLOCKS for other in others)
