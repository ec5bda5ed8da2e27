"""Random small float graphs, drawn by hypothesis: what exporters might write, in any combination."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]


class Builder:
    """A graph under construction: float values with known shapes, and the draws that extend it."""

    def __init__(self, draw: st.DrawFn, opset: int) -> None:
        self.draw, self.opset = draw, opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, npt.NDArray[Any]] = {}
        self.values: dict[str, Shape] = {}
        self.random = np.random.default_rng(draw(st.integers(0, 1000)))

    def choose(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def constant(self, array: npt.NDArray[Any]) -> str:
        """A new initializer, or a Constant node."""
        name = f"w{len(self.weights) + len(self.nodes)}"
        if self.draw(st.integers(0, 4)) == 0:
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        else:
            self.weights[name] = array
        return name

    def weight(self, *shape: int, fan_in: int) -> str:
        """A weight of that shape: a shared one where there is one and the draw says so."""
        same = [n for n, w in self.weights.items() if w.shape == shape and w.dtype == np.float32]
        if same and self.draw(st.booleans()):
            return str(self.choose(*same))
        return self.constant((self.random.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32))

    def vector(self, size: int) -> str:
        return self.constant(self.random.standard_normal(size).astype(np.float32))

    def node(self, op_type: str, inputs: list[str], shape: Shape, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        self.values[name] = shape
        return name

    def pick(self, fits: Callable[[Shape], bool] = lambda s: True) -> str | None:
        """A value whose shape fits; recent ones more often, so that graphs get deep."""
        names = [n for n, s in self.values.items() if fits(s)]
        return self.draw(st.sampled_from(names[-3:] if self.draw(st.integers(0, 2)) else names)) if names else None


def conv(b: Builder, x: str) -> None:
    n, c, h, w = b.values[x]
    kernel, stride, group = b.choose(1, 2, 3), b.choose(1, 1, 2), b.choose(1, 1, c)
    pad = b.choose(0, kernel // 2)
    if min(h, w) + 2 * pad < kernel:
        return
    out = c * b.choose(1, 2) if group > 1 else b.choose(2, 4)
    inputs = [x, b.weight(out, c // group, kernel, kernel, fan_in=c // group * kernel**2)]
    if b.draw(st.booleans()):
        inputs.append(b.vector(out))
    size = tuple((d + 2 * pad - kernel) // stride + 1 for d in (h, w))
    b.node("Conv", inputs, (n, out, *size), pads=[pad] * 4, strides=[stride] * 2, group=group)


def conv_transpose(b: Builder, x: str) -> None:
    n, c, h, w = b.values[x]
    weight = b.weight(c, 3, 2, 2, fan_in=c * 4)
    b.node("ConvTranspose", [x, weight], (n, 3, 2 * h, 2 * w), strides=[2, 2])


def batch_norm(b: Builder, x: str) -> None:
    c = b.values[x][1]
    spread = b.constant((np.abs(b.random.standard_normal(c)) + 0.5).astype(np.float32))
    b.node("BatchNormalization", [x, b.vector(c), b.vector(c), b.vector(c), spread], b.values[x])


def pool(b: Builder, x: str) -> None:
    n, c, h, w = b.values[x]
    if b.draw(st.booleans()):
        b.node("GlobalAveragePool", [x], (n, c, 1, 1))
    elif min(h, w) >= 2:
        op_type = b.choose("MaxPool", "AveragePool")
        b.node(op_type, [x], (n, c, h // 2, w // 2), kernel_shape=[2, 2], strides=[2, 2])


def pad(b: Builder, x: str) -> None:
    n, c, h, w = b.values[x]
    b.node("Pad", [x, b.constant(np.int64([0, 0, 1, 0, 0, 0, 1, 1]))], (n, c, h + 2, w + 1))


def resize(b: Builder, x: str) -> None:
    n, c, h, w = b.values[x]
    scales = b.constant(np.float32([1, 1, 2, 2]))
    b.node("Resize", [x, "", scales], (n, c, 2 * h, 2 * w), mode=b.choose("nearest", "linear"))


def flatten(b: Builder, x: str) -> None:
    shape = b.values[x]
    size = int(np.prod(shape[1:]))
    if b.draw(st.booleans()):
        b.node("Flatten", [x], (shape[0], size))
    else:
        b.node("Reshape", [x, b.constant(np.int64([-1, size]))], (shape[0], size))


def transpose(b: Builder, x: str) -> None:
    shape = b.values[x]
    order = b.draw(st.permutations(range(1, len(shape))))
    b.node("Transpose", [x], (shape[0], *(shape[i] for i in order)), perm=[0, *order])


def activation(b: Builder, x: str) -> None:
    match b.choose("Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Gelu", "Softmax", "Swish"):
        case "Clip":
            bounds = [b.constant(np.float32(0)), b.constant(np.float32(6))]
            b.node("Clip", [x, *bounds], b.values[x])
        case "HardSwish":
            shifted = b.node("Add", [x, b.constant(np.float32(3))], b.values[x])
            bounds = [b.constant(np.float32(0)), b.constant(np.float32(6))]
            gate = b.node("Clip", [shifted, *bounds], b.values[x])
            product = b.node("Mul", [x, gate], b.values[x])
            b.node("Div", [product, b.constant(np.float32(6))], b.values[x])
        case "Gelu":
            scaled = b.node("Div", [x, b.constant(np.float32(np.sqrt(2)))], b.values[x])
            erf = b.node("Erf", [scaled], b.values[x])
            gate = b.node("Add", [erf, b.constant(np.float32(1))], b.values[x])
            product = b.node("Mul", [x, gate], b.values[x])
            b.node("Mul", [product, b.constant(np.float32(0.5))], b.values[x])
        case "Swish":
            b.node("Mul", [x, b.node("Sigmoid", [x], b.values[x])], b.values[x])
        case op_type:
            b.node(op_type, [x], b.values[x])


def arithmetic(b: Builder, x: str) -> None:
    shape = b.values[x]
    op_type = b.choose("Add", "Mul", "Sub")
    other = b.pick(lambda s: s == shape)
    kind = b.choose("value", "channel", "scalar", "full")
    if kind == "value" and other is not None:
        b.node(op_type, [x, other], shape)
        return
    sizes = {"channel": (1, shape[1], *(1,) * (len(shape) - 2)), "scalar": (), "full": shape[1:]}
    array = b.random.standard_normal(sizes.get(kind, ())).astype(np.float32)
    inputs = [x, b.constant(np.asarray(array))]
    b.node(op_type, inputs if b.draw(st.booleans()) else inputs[::-1], shape)


def concat(b: Builder, x: str) -> None:
    shape = b.values[x]
    other = b.pick(lambda s: len(s) == len(shape) and s[0] == shape[0] and s[2:] == shape[2:])
    if other is not None and shape[1] + b.values[other][1] <= 32:
        b.node("Concat", [x, other], (shape[0], shape[1] + b.values[other][1], *shape[2:]), axis=1)


def linear(b: Builder, x: str) -> None:
    shape = b.values[x]
    width = b.choose(3, 4, 8)
    if len(shape) == 2 and b.draw(st.booleans()):
        transposed = b.choose(0, 1)
        size = (width, shape[1]) if transposed else (shape[1], width)
        inputs = [x, b.weight(*size, fan_in=shape[1])] + ([b.vector(width)] if b.draw(st.booleans()) else [])
        b.node("Gemm", inputs, (shape[0], width), transB=transposed, alpha=b.choose(1.0, 0.5))
        return
    result = (*shape[:-1], width)
    product = b.node("MatMul", [x, b.weight(shape[-1], width, fan_in=shape[-1])], result)
    if b.draw(st.booleans()):
        b.node("Add", [product, b.vector(width)], result)


def attention(b: Builder, x: str) -> None:
    shape = b.values[x]
    if len(shape) < 3:
        return
    order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    turned = b.node("Transpose", [x], tuple(shape[i] for i in order), perm=order)
    scores = b.node("MatMul", [x, turned], (*shape[:-1], shape[-2]))
    scaled = b.node("Mul", [scores, b.constant(np.float32(1 / np.sqrt(shape[-1])))], b.values[scores])
    b.node("MatMul", [b.node("Softmax", [scaled], b.values[scores]), x], shape)


def layer_norm(b: Builder, x: str) -> None:
    shape = b.values[x]
    if b.opset >= 17 and shape[-1] > 1:
        b.node("LayerNormalization", [x, b.vector(shape[-1]), b.vector(shape[-1])], shape)


def branch(b: Builder, x: str) -> None:
    """An If on a condition that is an input, or a constant; its bodies read outer values and weights."""
    shape = b.values[x]
    weight = b.weight(shape[-1], shape[-1], fan_in=shape[-1])
    bodies = []
    for i, op_type in enumerate(("MatMul", b.choose("Relu", "MatMul", "Identity"))):
        number = len(b.nodes)
        result = helper.make_tensor_value_info(f"body{number}_{i}", TensorProto.FLOAT, [None, *shape[1:]])
        hidden = helper.make_node(op_type, [x, weight][: 2 if op_type == "MatMul" else 1], ["inner"])
        last = helper.make_node("Neg", ["inner"], [result.name])
        bodies.append(helper.make_graph([hidden, last], f"body{i}", [], [result]))
    condition = b.choose("condition", b.constant(np.array(True)))
    b.node("If", [condition], shape, then_branch=bodies[0], else_branch=bodies[1])


IMAGE = (conv, conv, conv, conv_transpose, batch_norm, pool, pad, resize, flatten)
SEQUENCE = (linear, linear, attention, layer_norm)
ANY = (activation, activation, arithmetic, concat, transpose, branch)


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A float model of 2 to 12 drawn steps with inputs `x` and `condition`, valid and of known output shapes."""
    opset = draw(st.integers(13, 21))
    b = Builder(draw, opset)
    b.values["x"] = draw(st.sampled_from([(1, 3, 8, 8), (2, 4, 6, 5), (1, 4, 9, 7), (2, 6), (1, 5, 8)]))
    free = draw(st.booleans())
    for _ in range(draw(st.integers(2, 12))):
        x = b.pick()
        assert x is not None
        steps = ANY + (IMAGE if len(b.values[x]) == 4 else SEQUENCE)
        if len(b.values[x]) == 3:
            steps += (flatten,)
        draw(st.sampled_from(steps))(b, x)
    made = [n for n in b.values if n != "x"] or [b.node("Relu", ["x"], b.values["x"])]
    last = made[-1]
    returned = list(dict.fromkeys([last, *draw(st.lists(st.sampled_from(made), max_size=1))]))
    shape = ["N" if free else b.values["x"][0], *b.values["x"][1:]]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * len(b.values[n])) for n in returned]
    weights = [numpy_helper.from_array(w, n) for n, w in b.weights.items()]
    graph = helper.make_graph(b.nodes, "random", inputs, outputs, weights)
    ir_version = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def samples(model: onnx.ModelProto, count: int = 4) -> list[dict[str, npt.NDArray[Any]]]:
    """Standard normal inputs of the first dimension that the graph was drawn for."""
    random = np.random.default_rng(0)
    dims = [d.dim_value or 2 for d in model.graph.input[0].type.tensor_type.shape.dim]
    return [
        {"x": random.standard_normal(dims).astype(np.float32), "condition": np.array(i % 2 == 0)} for i in range(count)
    ]
