"""Q/DQ graphs written by hand, with the names that lowering gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


class Builder:
    """Collects the nodes and initializers of one graph; activations are uint8 or int8 with a fixed scale."""

    def __init__(self, *, signed: bool = False, scale: float = 0.05) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.dtype: Any = np.int8 if signed else np.uint8
        self.scale = scale

    def constant(self, name: str, array: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op_type: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=f"n_{output}", domain=domain, **attributes))
        return output

    def convert(self, value: str, *, scale: float | None = None, zero: int | None = None) -> str:
        """value -> Q -> DQ; returns the dequantized name."""
        middle = 0 if self.dtype is np.int8 else 128
        self.constant(f"{value}_scale", np.float32(scale or self.scale))
        self.constant(f"{value}_zero_point", self.dtype(middle if zero is None else zero))
        params = [f"{value}_scale", f"{value}_zero_point"]
        self.node("QuantizeLinear", [value, *params], f"{value}_quantized")
        return self.node("DequantizeLinear", [f"{value}_quantized", *params], f"{value}_dequantized")

    def weight(self, name: str, array: Array, axis: int) -> str:
        """int8 codes per channel behind a DequantizeLinear."""
        rest = tuple(i for i in range(array.ndim) if i != axis)
        scale = np.abs(array).max(axis=rest, keepdims=True) / 127
        self.constant(f"{name}_quantized", np.rint(array / scale).astype(np.int8))
        self.constant(f"{name}_scale", scale.ravel().astype(np.float32))
        self.constant(f"{name}_zero_point", np.zeros(scale.size, np.int8))
        return self.node(
            "DequantizeLinear", [f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"], f"{name}_dequantized",
            axis=axis,
        )  # fmt: skip

    def integer_bias(self, name: str, array: Array, weight: str, *, wrong_by: float = 1.0) -> str:
        """int32 bias behind a DequantizeLinear, of scale s_x * s_w (times `wrong_by`)."""
        weight_scale = numpy_helper.to_array(next(i for i in self.initializers if i.name == f"{weight}_scale"))
        scale = (self.scale * weight_scale * wrong_by).astype(np.float32)
        self.constant(f"{name}_quantized", np.rint(array / scale).astype(np.int32))
        self.constant(f"{name}_scale", scale)
        self.constant(f"{name}_zero_point", np.zeros(scale.size, np.int32))
        return self.node(
            "DequantizeLinear", [f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"], f"{name}_dequantized",
            axis=0,
        )  # fmt: skip

    def model(self, inputs: dict[str, list[int | str]], outputs: list[str]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "hand-made",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def convolutions(*, signed: bool = False) -> onnx.ModelProto:
    """Two convolutions with a ReLU between, int32 biases, codes all the way: fuses wholly."""
    b, random = Builder(signed=signed), np.random.default_rng(0)
    x = b.convert("x")
    b.weight("W1", 0.3 * random.standard_normal((8, 4, 3, 3)), 0)
    bias = b.integer_bias("b1", random.standard_normal(8), "W1")
    b.node("Conv", [x, "W1_dequantized", bias], "c1", pads=[1, 1, 1, 1])
    b.node("Relu", ["c1"], "r1")
    r = b.convert("r1", zero=-128 if signed else 0)
    b.weight("W2", 0.3 * random.standard_normal((8, 8, 1, 1)), 0)
    b.node("Conv", [r, "W2_dequantized"], "c2")
    b.node("Softmax", [b.convert("c2")], "y", axis=1)
    return b.model({"x": [1, 4, 8, 8]}, ["y"])


def linear_with_float_bias(*, bias: bool = True) -> onnx.ModelProto:
    """Q/DQ MatMul with float output: with a float bias behind it, the runtime makes a float Gemm of it."""
    b, random = Builder(), np.random.default_rng(0)
    b.weight("W", random.standard_normal((16, 8)), 1)
    b.node("MatMul", [b.convert("x"), "W_dequantized"], "product")
    last = b.node("Add", ["product", b.constant("b", np.ones(8, np.float32))], "sum") if bias else "product"
    b.node("Erf", [last], "y")
    return b.model({"x": [4, 16]}, ["y"])


def plain() -> onnx.ModelProto:
    """One int8 convolution with a float bias."""
    b = Builder(signed=True)
    bias = b.constant("b", np.ones(4, np.float32))
    b.weight("W", np.random.default_rng(0).standard_normal((4, 4, 3, 3)), 0)
    b.node("Conv", [b.convert("x"), "W_dequantized", bias], "y")
    return b.model({"x": [1, 4, 8, 8]}, ["y"])


def asymmetric() -> onnx.ModelProto:
    """The input of an int8 convolution has a zero point."""
    b = Builder(signed=True)
    x = b.convert("x", zero=3)
    b.weight("W", np.random.default_rng(0).standard_normal((4, 4, 3, 3)), 0)
    b.node("Conv", [x, "W_dequantized"], "y", pads=[1, 1, 1, 1])
    return b.model({"x": [1, 4, 8, 8]}, ["y"])


def residual() -> onnx.ModelProto:
    """An int8 convolution, added to its input."""
    b = Builder(signed=True)
    x = b.convert("x")
    b.weight("W", np.random.default_rng(0).standard_normal((4, 4, 3, 3)), 0)
    b.node("Add", [b.node("Conv", [x, "W_dequantized"], "c", pads=[1, 1, 1, 1]), x], "y")
    return b.model({"x": [1, 4, 8, 8]}, ["y"])
