"""Norms over the last axis, whatever operators spell them.

LayerNorm(x) = (x - mean) / sqrt(variance + epsilon) * gamma + beta      LayerNormalization, or written out
RMSNorm(x)   = x / sqrt(mean of squares + epsilon) * gamma               RMSNormalization, Simplified..., or written out

Written out, a square is Pow(., 2) or a product with itself; the root is divided by, or its reciprocal is a factor;
gamma and beta are constants on either side of their operator, and may be missing.
Sources: Ba et al. 2016 (arXiv:1607.06450), Zhang and Sennrich 2019 (arXiv:1910.07467).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import constant, is_constant, rank
from qcompile.compiler.operators.norm_quant import Norm as Kind

_RMS_OPERATORS = ("RMSNormalization", "SimplifiedLayerNormalization")


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm of `source`.

    Attributes:
        columns: K, over which it goes.
        gamma, beta: constants of one value for each column, or one for all; None for 1 and 0.
        nodes: what computes it, the first in the graph first.
    """

    kind: Kind
    source: ir.Value
    columns: int
    gamma: ir.Value | None
    beta: ir.Value | None
    epsilon: float
    nodes: list[ir.Node]


def norm_of(value: ir.Value) -> Norm | None:
    """The norm that `value` is the result of, or None. Nothing but the norm reads what lies inside of it."""
    node = value.producer()
    if node is None or value is not node.outputs[0]:
        return None
    found = _operator(node) or _written_out(node)
    if found is None or not _is_closed(found, value):
        return None
    return found


def _is_closed(norm: Norm, result: ir.Value) -> bool:
    graph = norm.nodes[0].graph
    inner = [v for n in norm.nodes for v in n.outputs if v is not result]
    return all(n.graph is graph for n in norm.nodes) and not any(
        v.is_graph_output() or any(use.node not in norm.nodes for use in v.uses()) for v in inner
    )


def _operator(node: ir.Node) -> Norm | None:
    """A single operator."""
    source = node.inputs[0] if node.inputs else None
    if source is None or source.shape is None:
        return None
    plain = node.domain in ("", "ai.onnx")
    if plain and node.op_type == "LayerNormalization":
        kind: Kind = "LayerNorm"
    elif node.op_type in _RMS_OPERATORS and (plain or node.domain == "com.microsoft"):
        kind = "RMSNorm"
    else:
        return None
    columns, last = source.shape[-1], len(source.shape) - 1
    if node.attributes.get_int("axis", -1) not in (-1, last) or not isinstance(columns, int):
        return None
    given = [*node.inputs[1:], None, None][:2]
    if not all(_is_row(v, columns) for v in given):
        return None
    return Norm(kind, source, columns, given[0], given[1], node.attributes.get_float("epsilon", 1e-5), [node])


@dataclass
class _Reader:
    """Walks a norm that is written out, from its result to its source."""

    nodes: list[ir.Node] = field(default_factory=list)

    def made_by(self, value: ir.Value | None, *op_types: str) -> ir.Node | None:
        """The node of one of these types that makes `value`; it is noted as part of the norm."""
        node = value.producer() if value is not None else None
        if node is None or node.domain != "" or node.op_type not in op_types:
            return None
        if node not in self.nodes:
            self.nodes.append(node)
        return node

    def root(self, value: ir.Value | None) -> tuple[ir.Value, float] | None:
        """(v, epsilon) of sqrt(mean(v^2) + epsilon)."""
        sqrt = self.made_by(value, "Sqrt")
        add = self.made_by(sqrt.inputs[0], "Add") if sqrt is not None else None
        if add is None:
            return None
        moment, epsilon = _variable_and_number(add)
        mean = self.made_by(moment, "ReduceMean")
        square = self.made_by(mean.inputs[0], "Pow", "Mul") if mean is not None and _is_last(mean) else None
        if square is None or epsilon is None:
            return None
        a, b = square.inputs
        squared = _number(b) == 2 if square.op_type == "Pow" else b is a
        return (a, epsilon) if squared and a is not None else None

    def unit(self, value: ir.Value | None) -> tuple[ir.Value, float] | None:
        """(v, epsilon) of v / sqrt(mean(v^2) + epsilon)."""
        node = self.made_by(value, "Div", "Mul")
        if node is None:
            return None
        if node.op_type == "Div":
            found = self.root(node.inputs[1])
            return found if found is not None and self.same(found[0], node.inputs[0]) else None
        for v, factor in (node.inputs, node.inputs[::-1]):
            before = list(self.nodes)
            found = self.root(self.inverted(factor))
            if found is not None and self.same(found[0], v):
                return found
            self.nodes = before
        return None

    def inverted(self, value: ir.Value | None) -> ir.Value | None:
        """v of 1 / v."""
        node = value.producer() if value is not None else None
        if node is None or not (
            node.op_type == "Reciprocal" or (node.op_type == "Div" and _number(node.inputs[0]) == 1)
        ):
            return None
        self.made_by(value, "Reciprocal", "Div")
        return node.inputs[-1]

    def same(self, a: ir.Value, b: ir.Value | None) -> bool:
        """One value, or two differences from the mean that an exporter wrote out twice."""
        if a is b:
            return True
        first, second = (v.producer() if v is not None else None for v in (a, b))
        if first is None or second is None or {first.op_type, second.op_type} != {"Sub"}:
            return False
        equal = list(first.inputs) == list(second.inputs)
        return equal and self.made_by(b, "Sub") is not None

    def centred(self, value: ir.Value) -> ir.Value | None:
        """v of v - mean(v)."""
        before = list(self.nodes)
        sub = self.made_by(value, "Sub")
        mean = self.made_by(sub.inputs[1], "ReduceMean") if sub is not None else None
        if sub is not None and mean is not None and mean.inputs[0] is sub.inputs[0] and _is_last(mean):
            return sub.inputs[0]
        self.nodes = before
        return None


def _written_out(last: ir.Node) -> Norm | None:
    for shifted in (True, False):
        for scaled in (True, False):
            found = _read(last, shifted, scaled)
            if found is not None:
                return found
    return None


def _read(last: ir.Node, shifted: bool, scaled: bool) -> Norm | None:
    """The norm that ends with `last`, which adds beta when `shifted`, behind a product with gamma when `scaled`."""
    reader, value = _Reader(), last.outputs[0]
    parts: list[ir.Value | None] = []
    for wanted, op_type in ((shifted, "Add"), (scaled, "Mul")):
        node = reader.made_by(value, op_type) if wanted else None
        if wanted and (node is None or is_constant(node.inputs[0]) == is_constant(node.inputs[1])):
            return None
        part = None
        if node is not None:
            a, b = node.inputs
            value, part = (b, a) if is_constant(a) else (a, b)  # type: ignore[assignment]
        parts.append(part)
    found = reader.unit(value)
    if found is None:
        return None
    inner, epsilon = found
    outer = reader.centred(inner)
    source = outer if outer is not None else inner
    columns = source.shape[-1] if source.shape is not None else None
    if not isinstance(columns, int) or (outer is None and shifted):
        return None
    beta, gamma = parts
    if not (_is_row(gamma, columns) and _is_row(beta, columns)):
        return None
    kind: Kind = "LayerNorm" if outer is not None else "RMSNorm"
    return Norm(kind, source, columns, gamma, beta, epsilon, _in_order(reader.nodes))


def _in_order(nodes: list[ir.Node]) -> list[ir.Node]:
    graph = nodes[0].graph
    assert graph is not None
    return [n for n in graph if n in nodes]


def _variable_and_number(node: ir.Node) -> tuple[ir.Value | None, float | None]:
    a, b = node.inputs
    return (b, _number(a)) if is_constant(a) else (a, _number(b))


def _number(value: ir.Value | None) -> float | None:
    """A constant of one element."""
    array = constant(value)
    return float(np.asarray(array, np.float64).item()) if array is not None and array.size == 1 else None


def _is_row(value: ir.Value | None, columns: int) -> bool:
    """A constant of one value for each column, or one for all; None stands for the neutral one."""
    if value is None:
        return True
    if not is_constant(value) or value.shape is None:
        return False
    shape = value.shape.numpy()
    return int(np.prod(shape)) == (shape[-1] if shape else 1) and (not shape or shape[-1] in (1, columns))


def _is_last(reduction: ir.Node) -> bool:
    """Whether it reduces the last axis alone and keeps it."""
    axes: Any = reduction.attributes.get_ints("axes", None)
    if len(reduction.inputs) > 1:
        array = constant(reduction.inputs[1])
        axes = array.reshape(-1).tolist() if array is not None else None
    dims = rank(reduction.inputs[0])
    last = (-1,) if dims is None else (-1, dims - 1)
    return axes is not None and len(axes) == 1 and axes[0] in last and reduction.attributes.get_int("keepdims", 1) == 1
