"""Operators behind one another, among Q and DQ: optimizing the inlined bodies together changes nothing.

The runtime fuses Q, DQ and MatMul by pattern, and some of its fusions quantize activations or fail. Each body is
compared with numpy elsewhere, so here the graph as written is the measure of the graph as optimized.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from qcompile.compiler.operators import (
    Operator,
    linear24,
    linear_e4m3,
    linear_w4a16,
    linear_w8a8,
    norm_quant,
    quantize_rows,
)
from tests.operators.operands import attributes_of, operands
from tests.operators.running import run, session

K = 64
E4M3, HALF = ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT16
Chain = Callable[["Writer", ir.Value], ir.Value]


class Writer:
    """Writes a graph, with random constants where an operator has weights."""

    def __init__(self) -> None:
        self.x = ir.val("x", ir.DataType.FLOAT, ["batch", "length", K])
        self.graph = ir.Graph([self.x], [], nodes=[], opset_imports={"": 21}, name="g")
        self.model = ir.Model(self.graph, ir_version=10)

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def standard(self, op_type: str, *inputs: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = f"node{len(self.graph)}"
        made = ir.Value(name=f"{name}.out", type=ir.TensorType(dtype), shape=self.x.shape)
        attributes = {"to": dtype.value} if op_type == "Cast" else {}
        self.graph.append(ir.node(op_type, inputs, attributes, outputs=[made], name=name))
        return made

    def call(self, operator: Operator, **given: ir.Value) -> list[ir.Value]:
        """The results of `operator`, without the optional ones; inputs that are not given become constants."""
        name = f"node{len(self.graph)}"
        values = operands(operator, (2, 3), K, K, static=True)
        inputs = [
            given[o.name] if o.name in given else self.constant(f"{name}.{o.name}", values[o.name])
            for o in operator.inputs
        ]
        operator.declare(self.model)
        node = operator.node(inputs, name=name, attributes=attributes_of(operator))
        self.graph.append(node)
        return [value for value in node.outputs if value.name]


def static_int8(write: Writer, x: ir.Value) -> ir.Value:
    scale, zero = write.constant("s", np.array([0.03], np.float32)), write.constant("z", np.zeros(1, np.int8))
    codes = write.standard("QuantizeLinear", x, scale, zero, dtype=ir.DataType.INT8)
    (codes,) = write.call(linear_w8a8(bias=True, activation="Relu", requant=True), x_q=codes, x_scale=scale)
    (y,) = write.call(linear_w8a8(bias=True), x_q=codes, x_scale=write.constant("t", np.array([0.02], np.float32)))
    return y


def e4m3_transformer_layer(write: Writer, x: ir.Value) -> ir.Value:
    x_q, x_scale = write.call(quantize_rows(codes=E4M3), x=x)
    (y,) = write.call(linear_e4m3(bias=True, activation="Gelu"), x_q=x_q, x_scale=x_scale)
    x_q, x_scale = write.call(norm_quant("LayerNorm", add=True, codes=E4M3), x=x, skip=y)
    (y,) = write.call(linear_e4m3(activation="Silu"), x_q=x_q, x_scale=x_scale)
    return write.standard("Add", x, y, dtype=ir.DataType.FLOAT)


def int4_weights_behind_q_dq(write: Writer, x: ir.Value) -> ir.Value:
    scale, zero = write.constant("s", np.array(0.03, np.float32)), write.constant("z", np.array(3, np.uint8))
    codes = write.standard("QuantizeLinear", x, scale, zero, dtype=ir.DataType.UINT8)
    x = write.standard("DequantizeLinear", codes, scale, zero, dtype=ir.DataType.FLOAT)
    (y,) = write.call(linear_w4a16(bias=True, dtype=ir.DataType.FLOAT), x=x)
    codes = write.standard("QuantizeLinear", y, scale, zero, dtype=ir.DataType.UINT8)
    return write.standard("DequantizeLinear", codes, scale, zero, dtype=ir.DataType.FLOAT)


def half_precision(write: Writer, x: ir.Value) -> ir.Value:
    half = write.standard("Cast", x, dtype=HALF)
    (y,) = write.call(linear_w4a16(zero=True), x=half)
    (y,) = write.call(linear24(bias=True, activation="Gelu"), x=y)
    x_q, x_scale = write.call(norm_quant("RMSNorm", add=True, dtype=HALF), x=y, skip=half)
    (y,) = write.call(linear_w8a8(dtype=HALF), x_q=x_q, x_scale=x_scale)
    return write.standard("Cast", y, dtype=ir.DataType.FLOAT)


@pytest.mark.parametrize("chain", [static_int8, e4m3_transformer_layer, int4_weights_behind_q_dq, half_precision])
def test_optimized_together_they_give_the_same(chain: Chain) -> None:
    write = Writer()
    write.graph.outputs.append(chain(write, write.x))
    proto = ir.to_proto(write.model)
    onnx.checker.check_model(proto, full_check=True)
    x = np.random.default_rng(0).standard_normal((2, 9, K)).astype(np.float32)
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    (as_written,) = run(session(proto, plain), {"x": x}).values()
    (optimized,) = run(session(proto), {"x": x}).values()
    assert np.abs(as_written).max() > 0.5
    same = np.isclose(optimized, as_written, rtol=1e-4, atol=1e-4)
    assert same.mean() > 0.999, "more than a code that fell to the other side"
    np.testing.assert_allclose(optimized, as_written, atol=0.1)
