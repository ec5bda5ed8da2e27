"""Linear layers with blocks of FP8 or NVFP4 weights, as operators of ONNX Runtime's CUDA provider.

    Y[m, n] = sum_b s[n, b] sum_{k in b} X[m, k] W_q[n, k] + bias[n]           X, Y, bias: float16

    FP8     com.microsoft::MatMulBlockQuantizedFp8Weight   W_q: float8e4m3fn [N, K]; s: float32 [N, K / B]
    NVFP4   com.microsoft::MatMulBlockQuantizedFp4Weight   W_q: uint8 [N, K / 2], two E2M1 numbers in a byte, the first
            in the low half; s = t c, c: E4M3 numbers as uint8 [N, K / 16], t: float32 of the whole tensor

Casts stand around the operator; `precision` takes them away where the graph around is float16 as well. Source: ONNX
Runtime's contrib operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.compiler.codes import Codes, insert_behind
from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant, name_of
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import QuantizedWeight, Unit
from qcompile.compiler.provenance import stamp
from qcompile.compiler.specs import PerBlock
from qcompile.compiler.targets.table import Lowering
from qcompile.compiler.units import bias_add, planned_as
from qcompile.passes.lower.packing import blocks_last, packed_codes
from qcompile.passes.lower.stored_scales import stored_scale

_HALF = ir.DataType.FLOAT16

Store = Callable[[ir.Node, str, QuantizedWeight, Codes], list[ir.Value]]
"""Makes the initializers of a weight in the order in which its operator reads them."""


class LowerBlockFloats(Pass):
    """Write the units with blocks of FP8 or NVFP4 weights as operators on float16."""

    name: ClassVar[str] = "lower-block-floats"
    phase: ClassVar[Phase] = Phase.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        codes = Codes.of(model, context, self.name)
        chosen = [(lowering, found) for lowering in _OPERATORS for found in planned_as(lowering, model, context)]
        for lowering, (node, unit, _) in chosen:
            _lower(node, unit, codes, *_OPERATORS[lowering])
        if chosen:
            model.graph.opset_imports["com.microsoft"] = 1
        return bool(chosen)


def _lower(node: ir.Node, unit: Unit, codes: Codes, op_type: str, store: Store) -> None:
    graph, x = node.graph, node.inputs[0]
    assert isinstance(graph, ir.Graph)
    assert x is not None
    weight = codes.context.plan.weights[str(unit.weight), unit.node]
    chain, bias = [node], node.inputs[2] if len(node.inputs) > 2 else None
    if unit.bias is not None:
        add, bias = bias_add(node)
        chain.append(add)
    old, rows = chain[-1].outputs[0], blocks_last(weight.codes, weight.params)
    grain = weight.params.spec.granularity
    assert isinstance(grain, PerBlock)
    inputs: list[ir.Value | None] = [_half(x, graph, codes), *store(node, codes.weight_name(unit), weight, codes)]
    if bias is not None:
        row = codes.row(graph, bias, len(rows))
        inputs += [None, codes.constant(graph, f"{bias.name}_half", np.asarray(constant(row), np.float16))]
    product = ir.Node(
        "com.microsoft",
        op_type,
        inputs,
        [ir.AttrInt64("block_size", grain.size)],
        name=codes.unique(unit.lowered),
        outputs=[ir.Value(name=codes.unique(f"{old.name}_half"), type=ir.TensorType(_HALF), shape=old.shape)],
    )
    back = codes.node("Cast", product.outputs, f"{old.name}_float", ir.DataType.FLOAT, old)
    back.attributes.add(ir.AttrInt64("to", int(ir.DataType.FLOAT)))
    for made in (product, back):
        stamp(made, codes.made_by, chain)
    graph.insert_before(node, product)
    codes.replace(graph, node, chain, back)


def _half(x: ir.Value, graph: ir.Graph, codes: Codes) -> ir.Value:
    """`x` in float16, cast once for all who read it."""
    key = id(graph), "half", name_of(x)
    if key not in codes.values:
        cast = codes.node("Cast", [x], f"{x.name}_half", _HALF, x)
        cast.attributes.add(ir.AttrInt64("to", int(_HALF)))
        insert_behind(graph, x, cast)
        stamp(cast, codes.made_by, [x.producer() or use.node for use in list(x.uses())[:1]])
        codes.values[key] = cast.outputs[0]
    return codes.values[key]


def _fp8(node: ir.Node, name: str, weight: QuantizedWeight, codes: Codes) -> list[ir.Value]:
    graph, params = node.graph, weight.params
    assert isinstance(graph, ir.Graph)
    rows, scale = blocks_last(weight.codes, params), blocks_last(params.scale, params)
    dtype = params.spec.format.dtype
    stored = codes.constant(graph, f"{name}_quantized", np.ascontiguousarray(rows), dtype)
    return [stored, stored_scale(codes, node, f"{name}_block_scale", params, np.ascontiguousarray(scale))]


def _nvfp4(node: ir.Node, name: str, weight: QuantizedWeight, codes: Codes) -> list[ir.Value]:
    graph, params = node.graph, weight.params
    assert isinstance(graph, ir.Graph)
    assert params.nested is not None
    rows, scale = blocks_last(weight.codes, params), blocks_last(params.nested.codes, params)
    stored = packed_codes(rows.view(np.uint8), params.spec.format.bits)
    return [
        codes.constant(graph, f"{name}_nvfp4", stored),
        codes.constant(graph, f"{name}_block_scale", np.ascontiguousarray(scale).view(np.uint8)),
        codes.constant(graph, f"{name}_scale", params.nested.scale),
    ]


_OPERATORS: dict[Lowering, tuple[str, Store]] = {
    Lowering.BLOCK_FP8: ("MatMulBlockQuantizedFp8Weight", _fp8),
    Lowering.BLOCK_FP4: ("MatMulBlockQuantizedFp4Weight", _nvfp4),
}
