"""A product in two parts, codes and outlier columns, as one operator.

    LinearW8A8(QuantizeRows(x * keep), w) + Gather(x, columns) w_columns

become qcompile::LinearOutliersW8A8{Bias}{Activation}{T}: what `split-outliers` took apart and `outline` made an
operator of. A Relu, Gelu or x * Sigmoid(x) behind the sum goes in as well. Layers that share the parts of their
input each make their own: one kernel that reads x beats two products that write y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from qcompile.compiler.codes import Codes
from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import graphs, is_constant, nodes, rank
from qcompile.compiler.operators import DOMAIN, linear_outliers
from qcompile.compiler.operators.calls import forget_unused, is_row_quantizer
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.provenance import stamp
from qcompile.passes.prepare.following_activation import following_activation
from qcompile.passes.prepare.surgery import is_own, remove_unread


class FuseOutliers(Pass):
    """Let one operator multiply the codes and the outlier columns of an activation."""

    name: ClassVar[str] = "fuse-outliers"
    phase: ClassVar[Phase] = Phase.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        codes = Codes.of(model, context, self.name)
        found = [parts for node in nodes(model) if (parts := _parts(node)) is not None]
        for parts in found:
            _fuse(model, parts, codes)
        if found:
            for graph in list(graphs(model)):
                remove_unread(graph)
            forget_unused(model)
        return bool(found)


@dataclass(frozen=True)
class _Parts:
    """The nodes of a layer: total = linear(rows(x * keep)) + exact(taken(x))."""

    total: ir.Node
    linear: ir.Node
    mask: ir.Node
    exact: ir.Node
    taken: ir.Node


def _parts(total: ir.Node) -> _Parts | None:
    """The parts of a sum, if it is one of split-outliers'."""
    if total.op_type != "Add" or total.domain != "":
        return None
    linear, exact = (v.producer() if v is not None and is_own(v, total) else None for v in total.inputs)
    if linear is None or exact is None or exact.op_type != "MatMul" or not is_constant(exact.inputs[1]):
        return None
    if (linear.domain, linear.op_type) not in ((DOMAIN, "LinearW8A8"), (DOMAIN, "LinearW8A8Bias")):
        return None
    rows, taken = (node.inputs[0].producer() if node.inputs[0] is not None else None for node in (linear, exact))
    mask = rows.inputs[0].producer() if rows is not None and rows.inputs[0] is not None else None
    if rows is None or mask is None or taken is None or not is_row_quantizer(rows):
        return None
    keeps = mask.op_type == "Mul" and is_constant(mask.inputs[1]) and rank(mask.inputs[1]) == 1
    takes = taken.op_type == "Gather" and is_constant(taken.inputs[1]) and taken.attributes.get_int("axis", 0) == -1
    if not keeps or not takes or mask.inputs[0] is not taken.inputs[0]:
        return None
    return _Parts(total, linear, mask, exact, taken)


def _fuse(model: ir.Model, parts: _Parts, codes: Codes) -> None:
    total, linear = parts.total, parts.linear
    activation, absorbed = following_activation(total.outputs[0])
    chain = [parts.exact, linear, total, *absorbed]
    old, dtype, graph = chain[-1].outputs[0], total.outputs[0].dtype, total.graph
    assert isinstance(graph, ir.Graph)
    assert dtype is not None
    x, keep = parts.mask.inputs
    columns, weight = parts.taken.inputs[1], parts.exact.inputs[1]
    operands = [v for v in (x, keep, columns, weight, *linear.inputs[2:]) if v is not None]
    operator = linear_outliers(bias=len(linear.inputs) > 4, activation=activation, dtype=dtype)
    operator.declare(model)
    made = operator.node(operands, name=str(linear.name))
    made.outputs[0].shape = old.shape
    stamp(made, codes.made_by, chain)
    codes.replace(graph, total, chain, made)
