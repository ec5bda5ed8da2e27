"""Linear layers with blocks of 2-, 4- or 8-bit weights, as com.microsoft::MatMulNBits.

    Y[m, n] = sum_b s[n, b] sum_{k in b} X[m, k] (W_q[n, k] - z[n, b]) + bias[n]

W_q: uint8 [N, K / B, B bits / 8], codes of a row one behind the other, the low bits first, short last blocks
filled up. Signed codes are stored with 2^(bits - 1) added, which is the zero point of a kernel that is given none.
z: codes packed like W_q, each row a whole number of bytes, or [N, K / B] numbers stored like s where it is no code.
s: [N, K / B], float32, or float16 behind a Cast, which the runtime does when it loads the model.
X: float32 [..., K], made int8 per row and block by the kernel where the unit's form is BLOCKS, left float where
it is WEIGHTS. Blocks that the kernel does not have share scales: those of a whole row, or of 48 weights.

Source: ONNX Runtime's contrib operators; blocks as in Dettmers et al., "8-bit Optimizers via Block-wise
Quantization", 2022.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from qcompile.compiler.codes import Codes
from qcompile.compiler.context import CompileContext
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import Form, Unit
from qcompile.compiler.provenance import stamp
from qcompile.compiler.targets.table import Lowering
from qcompile.compiler.units import bias_add, planned_as
from qcompile.passes.lower.packing import packed_blocks
from qcompile.passes.lower.stored_scales import stored_scale, stored_zero_point

_ACCURACY = {Form.BLOCKS: 4, Form.WEIGHTS: 1}
"""MatMulNBits' accuracy_level: int8 inputs, or float32 ones; left out, later runtimes may choose another."""


class LowerBlocks(Pass):
    """Write the units with blocks of weights as MatMulNBits."""

    name: ClassVar[str] = "lower-blocks"
    phase: ClassVar[Phase] = Phase.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        codes = Codes.of(model, context, self.name)
        chosen = planned_as(Lowering.BLOCKS, model, context)
        for node, unit, _ in chosen:
            _lower(node, unit, codes)
        if chosen:
            model.graph.opset_imports["com.microsoft"] = 1
        return bool(chosen)


def _lower(node: ir.Node, unit: Unit, codes: Codes) -> None:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    weight, name = codes.context.plan.weights[str(unit.weight), unit.node], codes.weight_name(unit)
    blocks = packed_blocks(weight)
    last, bias = node, node.inputs[2] if len(node.inputs) > 2 else None
    if unit.bias is not None:
        last, bias = bias_add(node)
    columns, depth = blocks.shape
    bias = codes.row(graph, bias, columns)
    old = last.outputs[0]
    zero = blocks.zero_point
    inputs = [
        node.inputs[0],
        codes.constant(graph, f"{name}_blocks", blocks.codes),
        stored_scale(codes, node, f"{name}_block_scale", weight.params, blocks.scale),
        None if zero is None else stored_zero_point(codes, node, f"{name}_block_zero_point", weight.params, zero),
        None,
        bias,
    ]
    while inputs[-1] is None:
        inputs.pop()
    product = ir.Node(
        "com.microsoft",
        "MatMulNBits",
        inputs,
        [
            ir.AttrInt64("K", depth),
            ir.AttrInt64("N", columns),
            ir.AttrInt64("bits", blocks.bits),
            ir.AttrInt64("block_size", blocks.size),
            ir.AttrInt64("accuracy_level", _ACCURACY[unit.form]),
        ],
        name=codes.unique(unit.lowered),
        outputs=[ir.Value(type=old.type, shape=old.shape)],
    )
    chain = [node] if last is node else [node, last]
    stamp(product, codes.made_by, chain)
    codes.replace(graph, node, chain, product)
