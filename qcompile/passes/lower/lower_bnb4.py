"""Linear layers with NF4 weights, as com.microsoft::MatMulBnb4.

    Y[m, n] = sum_b a[n, b] sum_{k in b} X[m, k] t(W_q[n, k]) + bias[n]

t: the 16 levels of NF4; a: largest magnitude of a block of B weights; W_q: uint8 [N K / 2], two codes in a byte, the
first in the high half; a: [N K / B]. Blocks run on from row to row, so B divides K. Double quantization stores a as
8-bit codes, which the runtime restores when it loads the model. Source: Dettmers et al., "QLoRA", 2023; ONNX
Runtime's contrib operators.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from qcompile.compiler.codes import Codes
from qcompile.compiler.context import CompileContext
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import Unit
from qcompile.compiler.provenance import stamp
from qcompile.compiler.specs import PerBlock
from qcompile.compiler.targets.table import Lowering
from qcompile.compiler.units import planned_as
from qcompile.passes.lower.packing import blocks_last, high_half_first
from qcompile.passes.lower.stored_scales import stored_scale

_NF4 = 1


class LowerBnb4(Pass):
    """Write the units with NF4 weights as MatMulBnb4, and their biases as Adds."""

    name: ClassVar[str] = "lower-bnb4"
    phase: ClassVar[Phase] = Phase.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        codes = Codes.of(model, context, self.name)
        chosen = planned_as(Lowering.BNB4, model, context)
        for node, unit, _ in chosen:
            _lower(node, unit, codes)
        if chosen:
            model.graph.opset_imports["com.microsoft"] = 1
        return bool(chosen)


def _lower(node: ir.Node, unit: Unit, codes: Codes) -> None:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    weight, name = codes.context.plan.weights[str(unit.weight), unit.node], codes.weight_name(unit)
    params, old = weight.params, node.outputs[0]
    grain = params.spec.granularity
    assert isinstance(grain, PerBlock)
    rows, absmax = blocks_last(weight.codes, params), blocks_last(params.scale, params)
    columns, depth = rows.shape
    assert depth % grain.size == 0, "blocks must not reach from row to row"
    product = ir.Node(
        "com.microsoft",
        "MatMulBnb4",
        [
            node.inputs[0],
            codes.constant(graph, f"{name}_nf4", high_half_first(rows)),
            stored_scale(codes, node, f"{name}_absmax", params, absmax.reshape(-1)),
        ],
        [
            ir.AttrInt64("K", depth),
            ir.AttrInt64("N", columns),
            ir.AttrInt64("block_size", grain.size),
            ir.AttrInt64("quant_type", _NF4),
            ir.AttrInt64("transB", 1),
        ],
        name=codes.unique(unit.lowered),
        outputs=[ir.Value(type=old.type, shape=old.shape)],
    )
    stamp(product, codes.made_by, [node])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    last = product
    if bias is not None:
        product.outputs[0].name = codes.unique(f"{old.name}_product")
        graph.insert_before(node, product)
        last = ir.node("Add", [product.outputs[0], bias], name=codes.unique(f"{unit.node}_bias"))
        last.outputs[0].type, last.outputs[0].shape = old.type, old.shape
        stamp(last, codes.made_by, [node])
    codes.replace(graph, node, [node], last)
