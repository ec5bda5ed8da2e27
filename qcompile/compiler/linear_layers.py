"""Linear layers: products of an activation with a constant matrix, whose weights a method may edit.

    Y[g] = X[g] W[g]^T + b        W: [groups, N, K], whatever the layout in the model

Convolutions are such products over what the kernel sees (layer_rows.py): K = channels of a group * taps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.graph import constant, graphs, is_constant, name_of, rank
from qcompile.compiler.layer_rows import in_layout, matrix
from qcompile.compiler.scratch import on_disk

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A Conv, Gemm or MatMul that alone reads its weight."""

    node: ir.Node

    @property
    def name(self) -> str:
        """The name of its node."""
        return str(self.node.name)

    @property
    def weight(self) -> ir.Value:
        """The initializer of its weight."""
        assert self.node.inputs[1] is not None
        return self.node.inputs[1]

    @property
    def input(self) -> ir.Value:
        """The activation it reads."""
        assert self.node.inputs[0] is not None
        return self.node.inputs[0]

    @property
    def groups(self) -> int:
        return int(self.node.attributes.get_int("group", 1))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, N and K."""
        assert self.weight.shape is not None
        sizes = [int(d) for d in self.weight.shape.numpy()]
        if self.node.op_type == "Conv":
            return self.groups, sizes[0] // self.groups, int(np.prod(sizes[1:]))
        outputs_first = self.node.attributes.get_int("transB", 0)
        return (1, sizes[0], sizes[1]) if outputs_first else (1, sizes[1], sizes[0])

    @property
    def channels(self) -> int:
        """How many inputs a group has; K is so many for each tap of the kernel."""
        assert self.weight.shape is not None
        return int(self.weight.shape.numpy()[1]) if self.node.op_type == "Conv" else self.shape[2]

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a convolution of which each output reads one channel."""
        return self.groups > 1 and self.channels == 1

    @property
    def bias(self) -> ir.Value | None:
        """The constant that is added to its result: its own third input, or that of the Add which alone reads it."""
        if len(self.node.inputs) > 2 and self.node.inputs[2] is not None:
            return self.node.inputs[2]
        result = self.node.outputs[0]
        uses = list(result.uses())
        if len(uses) != 1 or result.is_graph_output() or uses[0].node.op_type != "Add":
            return None
        other = uses[0].node.inputs[1 - uses[0].idx]
        alone = other is not None and is_constant(other) and rank(other) == 1
        return other if alone and other is not None and other.shape == ir.Shape([self.shape[1]]) else None

    def matrix(self) -> Floats:
        """W, float32 [groups, N, K]."""
        found: Floats = np.ascontiguousarray(matrix(self.node, self._stored()), dtype=np.float32)
        return found

    def write(self, weight: npt.NDArray[Any]) -> None:
        """Let W be `weight`, [groups, N, K], in the type of the model."""
        array = on_disk(self.stored(weight))
        self.weight.const_value = ir.tensor(array, dtype=self.weight.dtype, name=name_of(self.weight))

    def stored(self, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """`weight`, [groups, N, K], in the layout and the type of the model."""
        like = self._stored()
        return np.ascontiguousarray(in_layout(self.node, weight.astype(like.dtype), like))

    def _stored(self) -> npt.NDArray[Any]:
        array = constant(self.weight)
        assert array is not None
        return array


def linear_layers(model: ir.Model) -> tuple[list[LinearLayer], dict[str, str]]:
    """Those of the main graph, in order, and why others are none: name of the node -> reason.

    Products of two activations are not mentioned.
    """
    found: list[LinearLayer] = []
    left_out: dict[str, str] = {}
    for graph in graphs(model):
        for node in graph:
            if not _multiplies_constant(node):
                continue
            reason = "it lies in a body of control flow" if graph is not model.graph else _obstacle(node)
            if reason:
                left_out[str(node.name)] = reason
            else:
                found.append(LinearLayer(node))
    return found, left_out


def _multiplies_constant(node: ir.Node) -> bool:
    named = node.domain in ("", "ai.onnx") and node.op_type in ("Conv", "Gemm", "MatMul")
    return named and not is_constant(node.inputs[0]) and is_constant(node.inputs[1])


def _obstacle(node: ir.Node) -> str:
    weight = node.inputs[1]
    assert weight is not None
    readers = sorted({str(use.node.name) for use in weight.uses() if use.node is not node})
    if readers:
        return f"its weight is that of {readers[0]} too"
    if len(weight.uses()) > 1 or weight.is_graph_output() or weight.is_graph_input():
        return "its weight is read in another place too"
    if weight.const_value is None:
        return "its weight is no initializer"
    if weight.dtype is None or not weight.dtype.is_floating_point():
        return "its weight is no floating-point tensor"
    if node.op_type != "Conv" and rank(weight) != 2:
        return "its weight is no matrix"
    if node.attributes.get_int("transA", 0):
        return "it reads its input transposed"
    if any(node.attributes.get_float(name, 1.0) != 1 for name in ("alpha", "beta")):
        return "it scales its product"
    return "" if _has_plain_bias(node) else "what it adds is no constant with a number for each output"


def _has_plain_bias(node: ir.Node) -> bool:
    """Whether a third input, if there is one, is a bias."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return True
    outputs = LinearLayer(node).groups * LinearLayer(node).shape[1]
    return is_constant(bias) and bias.shape is not None and int(np.prod(bias.shape.numpy())) == outputs
