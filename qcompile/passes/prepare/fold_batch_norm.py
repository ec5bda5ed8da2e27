"""BatchNormalization and other per-channel scales and shifts go into the weights before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import add_initializer, constant, graphs, rank
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.provenance import stamp
from qcompile.passes.prepare.surgery import Names, bypass, is_own, remove_unread
from qcompile.passes.prepare.untie import set_constant

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """y = scale * x + shift for each channel (axis 1) of `source`; vectors of shape [C]."""

    source: ir.Value
    scale: Vector
    shift: Vector


class FoldBatchNorm(Pass):
    """Fold y = s * x + t, with constant s and t for each channel, into the layer that makes x.

    With W the weight and b the bias of a Conv, ConvTranspose or Gemm: W' = s W, b' = s b + t. As y
    count BatchNormalization at inference, and Mul, Div, Add and Sub with a constant that is the same
    for all pixels of a channel. Chains fold one after the other. Weights read elsewhere too are
    untied first. A BatchNormalization after anything else becomes Mul and Add.

    Source: Jacob et al. 2018 (arXiv:1712.05877), section 3.2.
    """

    name: ClassVar[str] = "fold-batch-norm"
    phase: ClassVar[Phase] = Phase.PREPARE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    float_equivalent: ClassVar[bool] = True

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        names = Names(model)
        modified = False
        for graph in list(graphs(model)):
            changed = [self._fold(node, names) or self._spell_out(graph, node, names) for node in list(graph)]
            if any(changed):
                modified = True
                remove_unread(graph)
        return modified

    def _fold(self, node: ir.Node, names: Names) -> bool:
        for value in node.inputs:
            layer = value.producer() if value is not None else None
            if value is None or layer is None or not is_own(value, node):
                continue
            parts = _linear(layer)
            affine = _affine(node, parts.rank, parts.channels) if parts else None
            if parts is None or affine is None or affine.source is not value:
                continue
            if not bypass(node, value, take_name=True):
                continue
            dtype = parts.weight.dtype
            set_constant(layer, 1, (parts.weight * parts.along_weight(affine.scale)).astype(dtype), names)
            set_constant(layer, 2, (parts.bias * affine.scale + affine.shift).astype(dtype), names, "bias")
            if layer.op_type == "Gemm":
                layer.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
            stamp(layer, self.name, [layer, node])
            return True
        return False

    def _spell_out(self, graph: ir.Graph, node: ir.Node, names: Names) -> bool:
        """BatchNormalization as Mul and Add."""
        if node.op_type != "BatchNormalization" or node.domain != "" or node.graph is not graph:
            return False
        dims, gamma = rank(node.inputs[0]), constant(node.inputs[1])
        affine = _affine(node, dims, gamma.size) if dims is not None and dims >= 2 and gamma is not None else None
        if affine is None or dims is None or gamma is None:
            return False
        shape = (-1, *(1,) * (dims - 2))
        scale, shift = (
            add_initializer(graph, names.fresh(f"{node.name}_{what}"), vector.astype(gamma.dtype).reshape(shape))
            for what, vector in (("scale", affine.scale), ("shift", affine.shift))
        )
        product = ir.node("Mul", [affine.source, scale], name=names.fresh(f"{node.name}_mul"))
        product.outputs[0].name = names.fresh(f"{node.name}_scaled")
        result = ir.node("Add", [product.outputs[0], shift], name=names.fresh(f"{node.name}_add"))
        for made in (product, result):
            made.outputs[0].type, made.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
            stamp(made, self.name, [node])
        graph.insert_before(node, [product, result])
        return bypass(node, result.outputs[0], take_name=True)


@dataclass(frozen=True, eq=False)
class Linear:
    """The constants of a linear layer.

    Attributes:
        rank: number of dimensions of its output; axis 1 holds the channels.
        channels: number of output channels C.
        bias: shape [C], zeros where there is none.
    """

    node: ir.Node
    weight: npt.NDArray[Any]
    bias: Vector
    rank: int
    channels: int

    def along_weight(self, vector: Vector) -> npt.NDArray[np.float64]:
        """A vector of shape [C] so that it multiplies the weight by output channel."""
        extra = (1,) * (self.weight.ndim - 2)
        if self.node.op_type == "ConvTranspose":
            group = self.node.attributes.get_int("group", 1)
            per_input = self.weight.shape[0] // group
            return np.repeat(vector.reshape(group, -1), per_input, axis=0).reshape(self.weight.shape[0], -1, *extra)
        if self.node.op_type == "Gemm" and not self.node.attributes.get_int("transB", 0):
            return vector
        return vector.reshape(-1, 1, *extra)


def _linear(node: ir.Node) -> Linear | None:
    """The layer behind `node`, where weight and bias are constants."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or node.domain != "":
        return None
    weight = constant(node.inputs[1])
    if weight is None or weight.dtype.kind != "f":
        return None
    match node.op_type:
        case "Conv":
            channels = weight.shape[0]
        case "ConvTranspose":
            channels = weight.shape[1] * node.attributes.get_int("group", 1)
        case _:
            channels = weight.shape[0 if node.attributes.get_int("transB", 0) else 1]
    bias: Vector | None = np.zeros(channels)
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is not None:
        array = constant(given)
        bias = None if array is None else _per_channel(array, 2 if node.op_type == "Gemm" else 1, channels)
        if bias is not None and node.op_type == "Gemm":
            bias = bias * node.attributes.get_float("beta", 1.0)
    return None if bias is None else Linear(node, weight, bias, weight.ndim, channels)


def _affine(node: ir.Node, dims: int, channels: int) -> Affine | None:
    """What `node` computes, if that is a scale and a shift for each channel of a value of rank `dims`."""
    if node.domain != "":
        return None
    if node.op_type == "BatchNormalization":
        return _of_batch_norm(node)
    if node.op_type not in ("Mul", "Div", "Add", "Sub"):
        return None
    a, b = node.inputs
    left, right = constant(a), constant(b)
    if (left is None) == (right is None) or a is None or b is None:
        return None
    known = left if left is not None else right
    assert known is not None
    vector = _per_channel(known, dims, channels) if known.dtype.kind == "f" else None
    if vector is None:
        return None
    source, one, zero = (b if left is not None else a), np.ones(channels), np.zeros(channels)
    match node.op_type:
        case "Mul":
            return Affine(source, vector, zero)
        case "Add":
            return Affine(source, one, vector)
        case "Sub":
            return Affine(source, one, -vector) if right is not None else Affine(source, -one, vector)
        case "Div" if right is not None and vector.all():
            return Affine(source, one / vector, zero)
    return None


def _of_batch_norm(node: ir.Node) -> Affine | None:
    source = node.inputs[0]
    constants = [constant(v) for v in node.inputs[1:5]]
    if source is None or any(c is None for c in constants) or node.attributes.get_int("training_mode", 0) == 1:
        return None
    gamma, beta, mean, variance = (c.astype(np.float64) for c in constants if c is not None)
    scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return Affine(source, scale, beta - mean * scale)


def _per_channel(array: npt.NDArray[Any], dims: int, channels: int) -> Vector | None:
    """`array` as one number for each channel, if broadcasting it to rank `dims` gives just that.

    With `dims` 1 the only axis is the channel.
    """
    shape = (1,) * (dims - array.ndim) + array.shape
    axis = min(1, dims - 1)
    if len(shape) != dims or shape[axis] not in (1, channels) or array.size != shape[axis]:
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,))
