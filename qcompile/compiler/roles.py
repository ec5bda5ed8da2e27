"""What a layer is for, read from the structure of the graph; names mean nothing.

    attention   products with a weight whose result a softmax product reads, or that read one's result:
                x W_q -> ... -> Q K^T -> Softmax -> P V -> ... -> W_o;  x W_v -> ... -> P V
    mlp         products with a weight between which a nonlinear activation stands: up, gate and down
    embedding   a Gather from a constant table by what the model is given as ids
    head        the product whose columns, apart from a bias or a scale, are the columns of an output of the model

A node has one role at most, the first of this list that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum

import onnx_ir as ir

from qcompile.compiler.graph import graphs, is_constant


class Role(StrEnum):
    ATTENTION = "attention"
    MLP = "mlp"
    EMBEDDING = "embedding"
    HEAD = "head"


_FUSED_ATTENTION = {"Attention", "MultiHeadAttention", "GroupQueryAttention"}
_ACTIVATIONS = {
    "Celu", "Elu", "Erf", "FastGelu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "QuickGelu",
    "Relu", "Selu", "Sigmoid", "Softplus", "Swish", "Tanh",
}  # fmt: skip
_MOVES = {
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "ScatterND", "Slice", "Split", "Squeeze",
    "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
_SCALINGS = {"Add", "Div", "Mul", "Sub"}
_MASKINGS = {"Where", "Clip", "Max", "Min", "Dropout"}
_SHAPES = {"Shape", "Size", "NonZero"}
_ID_STEPS = _MOVES | _SCALINGS | _MASKINGS

Goes = Callable[[ir.Node], bool]


_PRODUCTS = ("MatMul", "Gemm")


def has_weight(node: ir.Node) -> bool:
    """Whether `node` multiplies by a constant."""
    return node.op_type in (*_PRODUCTS, "Conv") and len(node.inputs) > 1 and is_constant(node.inputs[1])


def roles(model: ir.Model) -> dict[str, Role]:
    """Roles by node name; a node without one is missing."""
    found: dict[str, Role] = {}
    for graph in graphs(model):
        everything = list(graph)
        for role, members in (
            (Role.ATTENTION, _attention(everything)),
            (Role.MLP, _mlp(everything)),
            (Role.EMBEDDING, (n for n in everything if looks_up_ids(n))),
        ):
            for node in members:
                found.setdefault(str(node.name), role)
    for node in _heads(model.graph):
        found.setdefault(str(node.name), Role.HEAD)
    return found


def looks_up_ids(node: ir.Node) -> bool:
    """Whether `node` looks up rows of a constant table by numbers that the model is given, not by positions
    that the graph counts."""
    if node.op_type != "Gather" or not is_constant(node.inputs[0]) or node.attributes.get_int("axis", 0) != 0:
        return False
    table = node.inputs[0]
    if table is None or table.dtype is None or not table.dtype.is_floating_point():
        return False
    return any(v.is_graph_input() for v in sources_of(node.inputs[1], lambda n: n.op_type in _ID_STEPS))


def _attention(everything: list[ir.Node]) -> Iterator[ir.Node]:
    for node in everything:
        if node.op_type in _FUSED_ATTENTION:
            yield from _weighted_above(node.inputs[:3])
            yield from _weighted_below(node)
        elif node.op_type == "Softmax":
            scores = _behind(node.inputs[0], lambda n: n.op_type in _MOVES | _SCALINGS | _MASKINGS | {"Tanh"})
            products = [n for n in scores if _multiplies_activations(n)]
            mixes = [n for n in _ahead(node, _passes_on) if _multiplies_activations(n)]
            if products and mixes:
                yield from _weighted_above([v for n in (*products, *mixes) for v in n.inputs])
                for mix in mixes:
                    yield from _weighted_below(mix)


def _mlp(everything: list[ir.Node]) -> Iterator[ir.Node]:
    for down in filter(has_weight, everything):
        region = list(_behind(down.inputs[0], _within_layer))
        above = [n for n in region if has_weight(n)]
        if above and any(n.op_type in _ACTIVATIONS for n in region):
            yield from above
            yield down


def _heads(graph: ir.Graph) -> Iterator[ir.Node]:
    for output in graph.outputs:
        value: ir.Value | None = output
        while value is not None and (node := value.producer()) is not None:
            if has_weight(node):
                yield node
                break
            value = _same_columns(node)


def _same_columns(node: ir.Node) -> ir.Value | None:
    """The one activation that `node` reads, where it leaves the last axis as it is."""
    given = [v for v in node.inputs if v is not None and not is_constant(v)]
    if sums_a_branch(node):
        return node.inputs[0]
    if node.op_type in _MOVES - {"Concat"}:
        columns = [v.shape[-1] if v is not None and v.shape else None for v in (node.inputs[0], node.outputs[0])]
        return node.inputs[0] if isinstance(columns[0], int) and columns[0] == columns[1] else None
    return given[0] if node.op_type in _SCALINGS | {"Softmax", "LogSoftmax", "Tanh"} and len(given) == 1 else None


def _multiplies_activations(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and not any(is_constant(v) for v in node.inputs)


def _within_layer(node: ir.Node) -> bool:
    """Whether a walk from a product back to the one before it may cross `node`: no sum of two branches, no norm."""
    if node.op_type == "Add":
        return any(is_constant(v) for v in node.inputs) or _sums_a_gelu(node) or sums_a_branch(node)
    return node.op_type in _ACTIVATIONS | _MOVES | _MASKINGS | {"Mul", "Div", "Sub", "Pow"}


def sums_a_branch(node: ir.Node) -> bool:
    """Whether `node` adds to a product with a weight what a low-rank branch makes of the same input:
    x W + (x A) B, a bias of the first product included."""
    if node.op_type != "Add" or node.domain != "":
        return False
    first, outer = (v.producer() if v is not None else None for v in node.inputs)
    if first is not None and first.op_type == "Add" and is_constant(first.inputs[1]) and first.inputs[0] is not None:
        first = first.inputs[0].producer()
    inner = outer.inputs[0].producer() if outer is not None and outer.inputs[0] is not None else None
    if first is None or outer is None or inner is None or not all(map(has_weight, (first, outer, inner))):
        return False
    return first.inputs[0] is inner.inputs[0]


def _sums_a_gelu(node: ir.Node) -> bool:
    """x + 0.044715 x^3, inside a Gelu written with Tanh."""
    return any(use.node.op_type in ("Mul", "Tanh") for use in node.outputs[0].uses())


def _passes_on(node: ir.Node) -> bool:
    return node.op_type in _MOVES | _MASKINGS or (node.op_type in _SCALINGS and node.op_type != "Add")


def _weighted_above(values: Iterable[ir.Value | None]) -> Iterator[ir.Node]:
    for value in values:
        yield from (n for n in _behind(value, lambda n: n.op_type not in _SHAPES) if has_weight(n))


def _weighted_below(node: ir.Node) -> Iterator[ir.Node]:
    yield from (n for n in _ahead(node, _passes_on) if has_weight(n))


def _behind(value: ir.Value | None, crosses: Goes) -> Iterator[ir.Node]:
    """Producers of `value`, and theirs as long as `crosses` says so; products with a weight end the walk."""
    waiting, seen = [value], set[ir.Node]()
    while waiting:
        made = waiting.pop()
        node = made.producer() if made is not None else None
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        if not has_weight(node) and crosses(node):
            waiting += node.inputs


def _ahead(node: ir.Node, crosses: Goes) -> Iterator[ir.Node]:
    """Readers of what `node` writes, and theirs as long as `crosses` says so."""
    waiting, seen = [node], set[ir.Node]()
    while waiting:
        for output in waiting.pop().outputs:
            for use in output.uses():
                if use.node not in seen:
                    seen.add(use.node)
                    yield use.node
                    if not has_weight(use.node) and crosses(use.node):
                        waiting.append(use.node)


def sources_of(value: ir.Value | None, crosses: Goes = lambda _: True) -> Iterator[ir.Value]:
    """Values without a producer that `value` is made of."""
    waiting, seen = [value], set[ir.Value]()
    while waiting:
        made = waiting.pop()
        if made is None or made in seen:
            continue
        seen.add(made)
        node = made.producer()
        if node is None:
            yield made
        elif crosses(node):
            waiting += node.inputs
