"""Linear layers with blocks of int8 weights, whose inputs are quantized row by row when they run.

    Y[m, n] = sum_b s_x[m, b] s_w[n, b] sum_{k in b} X_q[m, k] W_q[n, k] + bias[n]

as com.microsoft::MatMulNBits of 8 bits. W_q: uint8 [N, K / B, B] with zero point 128, short last blocks
filled with it; s_w: float32 [N, K / B]; X: float32 [..., K], made int8 per row and block by the kernel
(accuracy level 4), or left float where the unit's form is WEIGHTS. Source: ONNX Runtime's contrib
operators; blocks as in Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.codes import Codes
from qcompile.compiler.context import CompileContext
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import Form, QuantizedWeight, Unit
from qcompile.compiler.provenance import stamp
from qcompile.compiler.specs import PerBlock
from qcompile.compiler.targets.table import Lowering
from qcompile.compiler.units import bias_add, planned_as

_MIDDLE = 128
_INTEGER_PRODUCTS = 4


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


def packed(weight: QuantizedWeight) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Codes [N, K / B, B] and scales [N, K / B] as MatMulNBits wants them, from those of a matrix."""
    grain = weight.params.spec.granularity
    assert isinstance(grain, PerBlock)
    rows, scale = (np.moveaxis(a, grain.axis, 1) for a in (weight.codes, weight.params.scale))
    missing = scale.shape[1] * grain.size - rows.shape[1]
    filled: npt.NDArray[Any] = np.pad(rows.astype(np.int16) + _MIDDLE, ((0, 0), (0, missing)), constant_values=_MIDDLE)
    return filled.astype(np.uint8).reshape(*scale.shape, grain.size), np.ascontiguousarray(scale)


def _lower(node: ir.Node, unit: Unit, codes: Codes) -> None:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    weight, name = codes.context.plan.weights[str(unit.weight), unit.node], codes.weight_name(unit)
    grain = weight.params.spec.granularity
    assert isinstance(grain, PerBlock)
    data, scale = packed(weight)
    last, bias = node, node.inputs[2] if len(node.inputs) > 2 else None
    if unit.bias is not None:
        last, bias = bias_add(node)
    columns, depth = data.shape[0], weight.codes.shape[grain.axis]
    bias = codes.row(graph, bias, columns)
    old = last.outputs[0]
    blocks = codes.constant(graph, f"{name}_blocks", data)
    scales = codes.constant(graph, f"{name}_block_scale", scale.reshape(-1))
    product = ir.Node(
        "com.microsoft",
        "MatMulNBits",
        [node.inputs[0], blocks, scales, *([None, None, bias] if bias is not None else [])],
        [
            ir.AttrInt64("K", depth),
            ir.AttrInt64("N", columns),
            ir.AttrInt64("bits", 8),
            ir.AttrInt64("block_size", grain.size),
            *([ir.AttrInt64("accuracy_level", _INTEGER_PRODUCTS)] if unit.form is Form.BLOCKS else []),
        ],
        name=codes.unique(f"{unit.node}_int8"),
        outputs=[ir.Value(type=old.type, shape=old.shape)],
    )
    chain = [node] if last is node else [node, last]
    stamp(product, codes.made_by, chain)
    codes.replace(graph, node, chain, product)
