"""Linear layers as operators of the domain `qcompile`, which carry their own definition.

    scales from calibration    QuantizeLinear(x, s) -> LinearW8A8{Bias}{Activation}(x_q, [s], w, w_scale, bias)
    scales of each row         QuantizeRows(x) -> LinearW8A8{Bias}{Activation}(x_q, x_scale, w, w_scale, bias)
    weights alone, in blocks   LinearW4A16{Zero}{Bias}(x, w, w_scale, [w_zero], bias)

and LinearE4M3 in the place of LinearW8A8 for FP8 codes. A weight whose codes have the 2:4 pattern goes to Linear24W8A8
or Linear24E4M3, which multiply without its zeros; their kernels need cuSPARSELt. Where a kernel for the operator is
registered, it runs; elsewhere the runtime inlines the function that the artifact has for it. The codes of a tensor are
made once for all who read them. The bias Add, and a Relu, Gelu or x * Sigmoid(x) that alone reads the result, become
part of the operator. w: [N, K], so the weight of a MatMul is transposed here. Only units whose row in the target's
table says so are written this way.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.codes import Codes
from qcompile.compiler.context import CompileContext
from qcompile.compiler.formats import INT4, UINT4
from qcompile.compiler.graph import name_of
from qcompile.compiler.operators import (
    Operator,
    linear24_e4m3,
    linear24_w8a8,
    linear_e4m3,
    linear_w4a16,
    linear_w8a8,
    quantize_rows,
)
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import Form, Unit
from qcompile.compiler.provenance import stamp
from qcompile.compiler.specs import PerBlock
from qcompile.compiler.targets.table import Lowering, SparseProducts
from qcompile.compiler.units import bias_add, planned_as
from qcompile.passes.lower.packing import blocks_last
from qcompile.passes.prepare.following_activation import following_activation

_PRODUCTS = {
    ir.DataType.INT8: (linear_w8a8, linear24_w8a8),
    ir.DataType.FLOAT8E4M3FN: (linear_e4m3, linear24_e4m3),
}
"""The operators on codes of each type: for any weight, and for one with the 2:4 pattern."""


class Outline(Pass):
    """Write the units that the target has an operator for as calls of it."""

    name: ClassVar[str] = "outline"
    phase: ClassVar[Phase] = Phase.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})

    sparse: bool = Field(default=True, description="weights with the 2:4 pattern go to operators for sparse ones")

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        codes = Codes.of(model, context, self.name)
        chosen = planned_as(Lowering.OPERATOR, model, context)
        sparse = context.target.sparse if self.sparse else None
        for node, unit, _ in chosen:
            kind = _BlockLayer if unit.form is Form.WEIGHTS else _Layer
            kind(model, node, unit, codes, sparse).write()
        return bool(chosen)


class _Layer:
    """One linear layer on its way into an operator."""

    def __init__(self, model: ir.Model, node: ir.Node, unit: Unit, codes: Codes, sparse: SparseProducts | None) -> None:
        self.model, self.node, self.unit, self.codes, self.sparse = model, node, unit, codes, sparse
        assert isinstance(node.graph, ir.Graph)
        self.graph = node.graph
        self.weight = codes.context.plan.weights[str(unit.weight), unit.node]
        self.kind = self.weight.params.spec.format.dtype

    def with_bias(self) -> tuple[list[ir.Node], ir.Value | None]:
        """The product with the Add of its bias, and the bias."""
        if self.unit.bias is None:
            return [self.node], self.node.inputs[2] if len(self.node.inputs) > 2 else None
        add, bias = bias_add(self.node)
        return [self.node, add], bias

    def write(self) -> None:
        chain, bias = self.with_bias()
        activation, absorbed = following_activation(chain[-1].outputs[0])
        chain += absorbed
        w, w_scale = self.rows_of_weight()
        bias = self.codes.row(self.graph, bias, len(w_scale))
        old = chain[-1].outputs[0]
        assert old.dtype is not None
        dense, sparse = _PRODUCTS[self.kind]
        make = sparse if self.sparse is not None and self.sparse.takes(w) else dense
        operator = make(bias=bias is not None, activation=activation, dtype=old.dtype)
        stored = self.codes.weight_name(self.unit)
        inputs = [
            *self.activations(),
            self.codes.constant(self.graph, f"{stored}_quantized", w, self.kind),
            self.codes.constant(self.graph, f"{stored}_scale", w_scale),
            *([bias] if bias is not None else []),
        ]
        self.replace(chain, self.call(operator, inputs, self.unit.lowered, chain))

    def replace(self, chain: list[ir.Node], made: ir.Node) -> None:
        made.outputs[0].shape = chain[-1].outputs[0].shape
        self.codes.replace(self.graph, self.node, chain, made)

    def rows_of_weight(self) -> tuple[np.ndarray, np.ndarray]:
        """Codes [N, K] and their scales [N]."""
        row = self.codes.context.target.row(self.node)
        assert row is not None
        assert row.weight_axis is not None
        w = np.ascontiguousarray(np.moveaxis(self.weight.codes, row.weight_axis(self.node), 0))
        return w, np.broadcast_to(self.weight.params.scale, len(w)).astype(np.float32)

    def activations(self) -> tuple[ir.Value, ir.Value]:
        """Codes of the layer's input and their scale, as the form of the unit wants them."""
        x = self.node.inputs[0]
        assert x is not None
        if self.unit.form is Form.DYNAMIC:
            return self.codes.rows(self.graph, x, self.quantized_rows)
        name = self.unit.inputs[0]
        assert name is not None
        scale = self.codes.context.plan.tensors[name].scale
        return (
            self.codes.quantized(self.graph, x, name),
            self.codes.constant(self.graph, f"{name}_scale", scale.reshape(1)),
        )

    def quantized_rows(self, x: ir.Value) -> ir.Node:
        assert x.dtype is not None
        operator = quantize_rows(dtype=x.dtype, codes=self.kind)
        return self.call(operator, [x], f"{name_of(x)}_rows", [self.node])

    def call(
        self, operator: Operator, inputs: list[ir.Value], name: str, sources: list[ir.Node], **attributes: int
    ) -> ir.Node:
        operator.declare(self.model)
        made = operator.node(inputs, name=self.codes.unique(name), attributes=attributes)
        stamp(made, self.codes.made_by, sources)
        return made


class _BlockLayer(_Layer):
    """One with 4-bit weights in blocks, whose input stays as it is."""

    def write(self) -> None:
        chain, bias = self.with_bias()
        params, x, old = self.weight.params, self.node.inputs[0], chain[-1].outputs[0]
        grain = params.spec.granularity
        assert isinstance(grain, PerBlock)
        assert x is not None
        assert old.dtype is not None
        w, scale, zero = (blocks_last(a, params) for a in (self.weight.codes, params.scale, params.zero_point))
        shifted = params.spec.format is UINT4 or bool(zero.any())
        if shifted:
            lifted = 0 if params.spec.format is UINT4 else -int(INT4.low)
            w, zero = w.astype(np.int16) + lifted, zero + lifted
        kind, stored = (UINT4 if shifted else INT4).dtype, self.codes.weight_name(self.unit)
        bias = self.codes.row(self.graph, bias, len(w))
        inputs = [
            x,
            self.codes.constant(self.graph, f"{stored}_quantized", w.astype(kind.numpy()), kind),
            self.codes.constant(self.graph, f"{stored}_block_scale", scale.astype(np.float16)),
        ]
        if shifted:
            inputs.append(self.codes.constant(self.graph, f"{stored}_zero_point", zero.astype(kind.numpy()), kind))
        if bias is not None:
            inputs.append(bias)
        operator = linear_w4a16(zero=shifted, bias=bias is not None, dtype=old.dtype)
        self.replace(chain, self.call(operator, inputs, self.unit.lowered, chain, block_size=grain.size))
