"""Linear layers that read the same tensor become one product: queries, keys and values; gate and up.

    x W_1 + b_1, ..., x W_n + b_n   =   Split(x [W_1 | ... | W_n] + [b_1 | ... | b_n])

W_i: [K, N_i], b_i: [N_i], zeros where a layer has none. Every column keeps its own sum, so its result, its scale
when the weight is quantized per channel, and the codes of its weights stay what they were. The device then reads x
once and starts one product that fills it, where several small ones did not.
Source: the packed projections of attention (Vaswani et al., 2017); the target's table says whether they pay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import add_initializer, constant, graphs, is_constant, rank
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.provenance import stamp
from qcompile.compiler.targets.conditions import PLAIN_GEMM, gemm_axis
from qcompile.compiler.targets.table import Merging
from qcompile.passes.prepare.following_activation import following_activation
from qcompile.passes.prepare.surgery import Names, bypass, is_unread, remove_unread, sole_reader


class MergeLinear(Pass):
    """Let linear layers of one input be one product, where the target gains by it."""

    name: ClassVar[str] = "merge-linear"
    phase: ClassVar[Phase] = Phase.PREPARE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    float_equivalent: ClassVar[bool] = True

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        rule = context.target.merging
        if rule is None:
            return False
        names, modified = Names(model), False
        for graph in list(graphs(model)):
            groups = [g for g in _groups(graph, rule) if len(g) > 1]
            for group in groups:
                self._merge(group, names)
            if groups:
                modified = True
                remove_unread(graph)
        return modified

    def _merge(self, layers: list[_Layer], names: Names) -> None:
        first, graph = layers[0].node, layers[0].node.graph
        assert isinstance(graph, ir.Graph)
        source, result = first.inputs[0], layers[0].output
        assert source is not None
        nodes = [n for layer in layers for n in layer.nodes]
        weight = _side_by_side(graph, layers, names.fresh(f"{layers[0].weight.name}_merged"))
        chain = [ir.node("MatMul", [source, weight], name=names.fresh(f"{first.name}_merged"))]
        if any(layer.bias is not None for layer in layers):
            dtype = weight.dtype.numpy() if weight.dtype is not None else np.float32
            row = np.concatenate([layer.bias_row(dtype) for layer in layers])
            bias = add_initializer(graph, names.fresh(f"{weight.name}_bias"), row, weight.dtype)
            chain.append(ir.node("Add", [chain[0].outputs[0], bias], name=names.fresh(f"{first.name}_merged_bias")))
        widths = [layer.columns for layer in layers]
        for node in chain:
            value = node.outputs[0]
            value.name, value.type = names.fresh(f"{result.name}_merged"), result.type
            if result.shape is not None:
                value.shape = ir.Shape([*result.shape[:-1], sum(widths)])
        sizes = add_initializer(graph, names.fresh(f"{first.name}_widths"), np.array(widths, np.int64))
        split = ir.node(
            "Split",
            [chain[-1].outputs[0], sizes],
            {"axis": -1},
            num_outputs=len(layers),
            name=names.fresh(f"{first.name}_split"),
        )
        for node in (*chain, split):
            stamp(node, self.name, nodes)
        graph.insert_before(first, [*chain, split])
        for layer, part in zip(layers, split.outputs, strict=True):
            bypass(layer.nodes[-1], part, take_name=True)


@dataclass(frozen=True, eq=False)
class _Layer:
    """y = x W + b, as a MatMul with the Add behind it or as a Gemm.

    Attributes:
        add: the Add of a constant bias that belongs to it, or None.
        bias: its constant, of one value or one for each column, or None.
    """

    node: ir.Node
    weight: ir.Value
    columns: int
    add: ir.Node | None
    bias: ir.Value | None

    @property
    def nodes(self) -> list[ir.Node]:
        return [self.node] if self.add is None else [self.node, self.add]

    @property
    def output(self) -> ir.Value:
        return self.nodes[-1].outputs[0]

    def matrix(self) -> npt.NDArray[Any]:
        """The weight as [K, N]."""
        array = constant(self.weight)
        assert array is not None
        return array.T if self.node.attributes.get_int("transB", 0) else array

    def bias_row(self, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        array = constant(self.bias)
        return np.broadcast_to(np.zeros(1, dtype) if array is None else array.reshape(-1), self.columns)


def _side_by_side(graph: ir.Graph, layers: list[_Layer], name: str) -> ir.Value:
    """The weights [K, sum of N] as one initializer, put together when it is read: a model may be larger than memory."""
    dtype, first = layers[0].weight.dtype, layers[0].weight.shape
    assert dtype is not None
    assert first is not None
    depth = int(first.numpy()[1 - gemm_axis(layers[0].node)])
    shape = ir.Shape([depth, sum(layer.columns for layer in layers)])

    def merged() -> ir.TensorProtocol:
        return ir.tensor(np.concatenate([layer.matrix() for layer in layers], axis=1), dtype=dtype, name=name)

    value = ir.Value(
        name=name,
        shape=shape,
        type=ir.TensorType(dtype),
        const_value=ir.LazyTensor(merged, dtype=dtype, shape=shape, name=name),
    )
    graph.register_initializer(value)
    return value


def _groups(graph: ir.Graph, rule: Merging) -> list[list[_Layer]]:
    """The layers of `graph` by what they read and the type of their weights, each in the order of the graph."""
    found: dict[tuple[ir.Value, ir.DataType | None], list[_Layer]] = {}
    for node in graph:
        layer = _layer(node) if not is_unread(node) else None
        source = node.inputs[0] if layer is not None else None
        if layer is None or source is None or layer.columns % rule.multiple:
            continue
        activation, _ = following_activation(layer.output)
        if activation in rule.activations:
            continue  # a Split would tear it from the kernel that computes it
        found.setdefault((source, layer.weight.dtype), []).append(layer)
    return list(found.values())


def _layer(node: ir.Node) -> _Layer | None:
    """`node` as a linear layer whose weight is its own and whose bias, if it has one, is one row."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm") or is_constant(node.inputs[0]):
        return None
    weight = node.inputs[1]
    if weight is None or weight.is_graph_input() or weight.const_value is None or sole_reader(weight) is not node:
        return None
    shape = weight.shape
    if shape is None or len(shape) != 2 or weight.dtype is None or not weight.dtype.is_floating_point():
        return None
    columns = int(shape.numpy()[gemm_axis(node)])
    if node.op_type == "MatMul":
        add, bias = _bias_add(node, columns)
        return _Layer(node, weight, columns, add, bias)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    plain = PLAIN_GEMM.holds(node) and (bias is None or _is_row(bias, columns, 2))
    return _Layer(node, weight, columns, None, bias) if plain else None


def _bias_add(product: ir.Node, columns: int) -> tuple[ir.Node | None, ir.Value | None]:
    add = sole_reader(product.outputs[0])
    if add is None or add.op_type != "Add" or add.domain != "" or add.graph is not product.graph:
        return None, None
    bias = add.inputs[1] if add.inputs[0] is product.outputs[0] else add.inputs[0]
    fits = bias is not None and _is_row(bias, columns, rank(product.outputs[0]) or 1)
    return (add, bias) if fits else (None, None)


def _is_row(bias: ir.Value, columns: int, most: int) -> bool:
    """A constant of one value or one for each column, of at most `most` dimensions."""
    if not is_constant(bias) or bias.shape is None or len(bias.shape) > most:
        return False
    shape = bias.shape.numpy()
    return int(np.prod(shape)) == (shape[-1] if shape else 1) and (not shape or shape[-1] in (1, columns))
