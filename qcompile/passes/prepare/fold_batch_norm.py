"""BatchNormalization and other per-channel scales and shifts go into the weights before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import add_initializer, constant, graphs, name_of, rank
from qcompile.compiler.moments import Moments
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.provenance import stamp, stamp_channels
from qcompile.passes.prepare.affine import Vector, affine_of, per_channel
from qcompile.passes.prepare.surgery import Names, bypass, is_own, remove_unread
from qcompile.passes.prepare.untie import set_constant


class FoldBatchNorm(Pass):
    """Fold y = s * x + t, with constant s and t for each channel, into the layer that makes x.

    With W the weight and b the bias of a Conv, ConvTranspose or Gemm: W' = s W, b' = s b + t. As y
    count BatchNormalization at inference, and Mul, Div, Add and Sub with a constant that is the same
    for all pixels of a channel. Chains fold one after the other. Weights read elsewhere too are
    untied first. A BatchNormalization after anything else becomes Mul and Add. What it knew of the values
    it wrote, mean beta and deviation |gamma|, is left in `context.moments` for passes that have no samples.

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
            changed = [
                self._fold(node, names, context) or self._spell_out(graph, node, names, context) for node in list(graph)
            ]
            if any(changed):
                modified = True
                remove_unread(graph)
        return modified

    def _fold(self, node: ir.Node, names: Names, context: CompileContext) -> bool:
        for value in node.inputs:
            layer = value.producer() if value is not None else None
            if value is None or layer is None or not is_own(value, node):
                continue
            parts = _linear(layer)
            affine = affine_of(node, parts.rank, parts.channels) if parts else None
            if parts is None or affine is None or affine.source is not value:
                continue
            before, after, moments = context.moments.get(name_of(value)), name_of(node.outputs[0]), _moments(node)
            if not bypass(node, value, take_name=True):
                continue
            if moments is None and before is not None:
                moments = before.affine(affine.scale, affine.shift)
            if moments is not None:
                context.moments[after] = moments
            dtype = parts.weight.dtype
            set_constant(layer, 1, (parts.weight * parts.along_weight(affine.scale)).astype(dtype), names)
            set_constant(layer, 2, (parts.bias * affine.scale + affine.shift).astype(dtype), names, "bias")
            if layer.op_type == "Gemm":
                layer.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
            stamp_channels(layer, self.name, [layer, node])
            return True
        return False

    def _spell_out(self, graph: ir.Graph, node: ir.Node, names: Names, context: CompileContext) -> bool:
        """BatchNormalization as Mul and Add."""
        if node.op_type != "BatchNormalization" or node.domain != "" or node.graph is not graph:
            return False
        dims, gamma = rank(node.inputs[0]), constant(node.inputs[1])
        affine = affine_of(node, dims, gamma.size) if dims is not None and dims >= 2 and gamma is not None else None
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
        moments = _moments(node)
        assert moments is not None
        context.moments[name_of(node.outputs[0])] = moments
        return bypass(node, result.outputs[0], take_name=True)


def _moments(node: ir.Node) -> Moments | None:
    """What `node` knows of the values it writes, where it is a BatchNormalization."""
    if node.op_type != "BatchNormalization":
        return None
    gamma, beta, _, variance = (constant(v) for v in node.inputs[1:5])
    assert gamma is not None
    assert beta is not None
    assert variance is not None
    spread = variance.astype(np.float64)
    narrowed = np.sqrt(spread / (spread + node.attributes.get_float("epsilon", 1e-5)))
    return Moments(beta.astype(np.float64), np.abs(gamma.astype(np.float64)) * narrowed)


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
        bias = None if array is None else per_channel(array, 2 if node.op_type == "Gemm" else 1, channels)
        if bias is not None and node.op_type == "Gemm":
            bias = bias * node.attributes.get_float("beta", 1.0)
    return None if bias is None else Linear(node, weight, bias, weight.ndim, channels)
