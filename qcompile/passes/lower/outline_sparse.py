"""Half-precision products whose weight has the 2:4 pattern become operators that multiply without its zeros.

    act(x w + b) -> Linear24{Bias}{Activation}{Fp16|Bf16}(x, w^T, b)

w: [N, K] in the operator, b: float32 [N]. As in `outline`, the bias Add and a Relu, Gelu or x * Sigmoid(x) that alone
reads the result become part of it, and where no kernel is registered the runtime inlines the operator's definition.
It stands behind `precision`, which decides what is half; float32 has no such instructions. Layers on codes are written
by `outline`. Source of the pattern: the NVIDIA Ampere architecture whitepaper, 'fine-grained structured sparsity'.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.compiler.codes import Codes
from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant
from qcompile.compiler.linear_layers import LinearLayer, linear_layers
from qcompile.compiler.operators import linear24
from qcompile.compiler.operators.linear24 import TYPES
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.provenance import stamp
from qcompile.compiler.units import bias_add
from qcompile.passes.prepare.following_activation import following_activation


class OutlineSparse(Pass):
    """Write half-precision layers with the 2:4 pattern as calls of the operator that the target has for them."""

    name: ClassVar[str] = "outline-sparse"
    phase: ClassVar[Phase] = Phase.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        if context.target.sparse is None:
            return False
        codes = Codes(model, context, self.name)
        return sum(_outlined(model, layer, codes) for layer in linear_layers(model)[0]) > 0


def _outlined(model: ir.Model, layer: LinearLayer, codes: Codes) -> bool:
    node, target, dtype = layer.node, codes.context.target, layer.node.outputs[0].dtype
    row = target.row(node)
    if node.op_type == "Conv" or dtype not in TYPES or row is None or not all(c.holds(node) for c in row.conditions):
        return False
    [w] = layer.matrix()
    if target.sparse is None or not target.sparse.takes(w):
        return False
    graph, chain, bias = model.graph, [node], layer.bias
    if bias is not None and len(node.inputs) < 3:
        chain.append(bias_add(node)[0])
    activation, absorbed = following_activation(chain[-1].outputs[0])
    chain += absorbed
    operator = linear24(bias=bias is not None, activation=activation, dtype=dtype)
    operator.declare(model)
    inputs = [layer.input, codes.constant(graph, f"{layer.weight.name}_rows", w.astype(dtype.numpy()), dtype)]
    if bias is not None and (array := constant(bias)) is not None:
        row_of_bias = np.broadcast_to(array.astype(np.float32).reshape(-1), len(w))
        inputs.append(codes.constant(graph, f"{bias.name}_float", row_of_bias))
    made = operator.node(inputs, name=codes.unique(f"{node.name}_24"))
    stamp(made, codes.made_by, chain)
    made.outputs[0].shape = chain[-1].outputs[0].shape
    codes.replace(graph, node, chain, made)
    return True
