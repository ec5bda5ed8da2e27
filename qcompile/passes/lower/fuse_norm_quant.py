"""A norm whose result becomes codes by rows: one operator in the place of up to three.

    sum = x + skip;   y = LayerNorm(sum) or RMSNorm(sum);   x_q, x_scale = QuantizeRows(y)

become qcompile::{Add}{LayerNorm|RMSNorm}Quant{E4M3}{T}: a row is read once, normalized and quantized while it is at
hand, where apart each step reads and writes it. Who else reads y or sum reads them as further outputs of the
operator; where nobody does, they are never written.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.compiler.codes import Codes
from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant, graphs, is_constant, name_of, nodes, opset
from qcompile.compiler.operators.calls import forget_unused, is_row_quantizer
from qcompile.compiler.operators.norm_quant import norm_quant
from qcompile.compiler.operators.quantize_rows import CODES
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.provenance import stamp
from qcompile.passes.lower.norms import Norm, norm_of
from qcompile.passes.prepare.surgery import remove_unread


class FuseNormQuant(Pass):
    """Let norms write codes themselves."""

    name: ClassVar[str] = "fuse-norm-quant"
    phase: ClassVar[Phase] = Phase.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        codes = Codes.of(model, context, self.name)
        fused = [_fuse(model, node, codes) for node in list(nodes(model)) if is_row_quantizer(node)]
        if any(fused):
            for graph in list(graphs(model)):
                remove_unread(graph)
            forget_unused(model)
        return any(fused)


def _fuse(model: ir.Model, rows: ir.Node, codes: Codes) -> bool:
    y = rows.inputs[0]
    norm = norm_of(y) if y is not None else None
    if y is None or norm is None or rows.graph is not norm.nodes[0].graph or norm.source.dtype != y.dtype:
        return False
    graph, dtype, kind = rows.graph, y.dtype, rows.outputs[0].dtype
    assert isinstance(graph, ir.Graph)
    assert dtype is not None
    assert kind in CODES
    add = _residual(norm)
    operator = norm_quant(norm.kind, add=add is not None, dtype=dtype, codes=kind)
    if operator.lowest_opset > opset(model):
        return False
    taken = {"x_q": rows.outputs[0], "x_scale": rows.outputs[1]}
    optional = {"y": (y, [rows])} | ({"sum": (add.outputs[0], norm.nodes)} if add is not None else {})
    for name, (value, absorbed) in optional.items():
        if value.is_graph_output() or any(use.node not in absorbed for use in value.uses()):
            taken[name] = value
    summands = [v for v in add.inputs if v is not None] if add is not None else [norm.source]
    operator.declare(model)
    made = operator.node(
        [*summands, *_parameters(graph, norm, name_of(y), codes)],
        name=codes.unique(f"{norm.nodes[-1].name}_rows"),
        attributes={"epsilon": norm.epsilon},
        wanted=taken.keys(),
    )
    stands_for = [*([add] if add is not None else []), *norm.nodes]
    stamp(made, codes.made_by, stands_for)
    graph.insert_before(stands_for[0], made)
    for operand, result in zip(operator.outputs, made.outputs, strict=True):
        if operand.name in taken:
            _take(taken[operand.name], result)
    return True


def _residual(norm: Norm) -> ir.Node | None:
    """The Add of two activations of one shape that makes what is normalized, or None."""
    node = norm.source.producer()
    if node is None or node.op_type != "Add" or node.domain != "" or node.graph is not norm.nodes[0].graph:
        return None
    a, b = node.inputs
    if a is None or b is None or is_constant(a) or is_constant(b) or a.shape is None or b.shape is None:
        return None
    known = all(isinstance(d, int) or d.value is not None for d in a.shape)
    return node if known and list(a.shape) == list(b.shape) else None


def _parameters(graph: ir.Graph, norm: Norm, name: str, codes: Codes) -> list[ir.Value]:
    """gamma, and beta for a LayerNorm, as float32 [K]; the norm's own constants where they are that already."""
    made = []
    parts = [("gamma", norm.gamma, 1.0), *([("beta", norm.beta, 0.0)] if norm.kind == "LayerNorm" else [])]
    for part, value, neutral in parts:
        if value is not None and value.dtype == ir.DataType.FLOAT and list(value.shape or ()) == [norm.columns]:
            made.append(value)
            continue
        array = constant(value) if value is not None else None
        row = np.full(1, neutral) if array is None else array.reshape(-1)
        made.append(codes.constant(graph, f"{name}_{part}", np.broadcast_to(row, norm.columns).astype(np.float32)))
    return made


def _take(old: ir.Value, new: ir.Value) -> None:
    """Let `new` stand in the place of `old`, under its name."""
    name = old.name
    new.type, new.shape = old.type or new.type, old.shape or new.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name, new.name = None, name
