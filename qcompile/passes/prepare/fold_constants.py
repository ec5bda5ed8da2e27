"""What does not depend on the input is computed now."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import add_initializer, constant, graphs, name_of
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.provenance import stamp
from qcompile.passes.prepare.dimensions import elements
from qcompile.passes.prepare.evaluation import Array, evaluate
from qcompile.passes.prepare.infer_shapes import infer_shapes
from qcompile.passes.prepare.surgery import Names

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
_KEPT = _RANDOM | {"QuantizeLinear", "DequantizeLinear", "Dropout", "Identity", "Constant"}
"""Operators that are not a function of their inputs, carry meaning, or are handled by other passes."""


class FoldConstants(Pass):
    """Replace nodes with constant inputs by initializers, and take the branch of an If that is decided.

    Dimensions that are known make `Shape` constant too, also where only some of them are
    (`Shape -> Gather` of a static axis). Rounds of folding and shape inference repeat until nothing
    changes. A result larger than `limit` bytes, and larger than what it is made of, is not stored, but for weights
    behind a Cast, which a checkpoint of half precision has.
    """

    name: ClassVar[str] = "fold-constants"
    phase: ClassVar[Phase] = Phase.PREPARE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    float_equivalent: ClassVar[bool] = True

    limit: int = Field(default=1 << 20, ge=0, description="largest constant in bytes that may be made")

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        modified = False
        while self._fold_round(model):
            modified = True
            infer_shapes(model)
        return modified

    def _fold_round(self, model: ir.Model) -> bool:
        names, modified = Names(model), False
        for graph in list(graphs(model)):
            for node in list(graph):
                if node.graph is graph:
                    modified |= self._take_branch(graph, node, names) or self._fold(model, graph, node)
        return modified

    def _fold(self, model: ir.Model, graph: ir.Graph, node: ir.Node) -> bool:
        if node.op_type in _KEPT or any(v.is_graph_output() for v in node.outputs):
            return False
        arrays = _known_dimensions(node) or self._evaluate(model, node)
        if arrays is None:
            return False
        named = [v for v in node.outputs if v.name]
        for old, array in zip(named, arrays, strict=True):
            name, old.name = name_of(old), None
            new = add_initializer(graph, name, array)
            stamp(new, self.name, [node])
            old.replace_all_uses_with(new)
        graph.remove(node, safe=True)
        return True

    def _evaluate(self, model: ir.Model, node: ir.Node) -> list[Array] | None:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return None
        if not all(v is None or _is_foldable(v) for v in node.inputs):
            return None
        inputs = [constant(v) for v in node.inputs]
        if node.op_type == "Cast":
            return evaluate(node, inputs, dict(model.graph.opset_imports), model.ir_version or 8)
        bound = max(self.limit, sum(a.nbytes for a in inputs if a is not None))
        if any(_bytes(v) > bound for v in node.outputs):
            return None
        arrays = evaluate(node, inputs, dict(model.graph.opset_imports), model.ir_version or 8)
        return arrays if arrays is not None and sum(a.nbytes for a in arrays) <= bound else None

    def _take_branch(self, graph: ir.Graph, node: ir.Node, names: Names) -> bool:
        """Replace an If whose condition is constant by the nodes of the branch it takes."""
        condition = constant(node.inputs[0]) if node.op_type == "If" and node.domain == "" else None
        if condition is None:
            return False
        body = node.attributes["then_branch" if condition.item() else "else_branch"].as_graph()
        for name in list(body.initializers):
            graph.register_initializer(body.initializers.pop(name))
        made = list(body)
        results = list(body.outputs)
        body.outputs.clear()
        body.remove(made)
        graph.insert_before(node, made)
        for inner in made:
            stamp(inner, self.name, [inner, node])
        for old, new in zip(node.outputs, results, strict=True):
            if new.producer() not in made or new.is_graph_output():
                link = ir.node("Identity", [new], name=names.fresh(f"{node.name}_{old.name}"))
                stamp(link, self.name, [node])
                graph.insert_before(node, link)
                [new] = link.outputs
            new.name, old.name = old.name, None
            new.type, new.shape = old.type or new.type, old.shape or new.shape
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        return True


def _known_dimensions(node: ir.Node) -> list[Array] | None:
    """The value of a node whose output is a vector of dimensions, all known."""
    if node.op_type == "Size" and node.inputs[0] is not None and node.inputs[0].shape is not None:
        shape = node.inputs[0].shape
        return [np.array(np.prod(shape.numpy(), dtype=np.int64))] if shape.is_static() else None
    if len(node.outputs) != 1 or node.op_type not in ("Shape", "Gather", "Slice", "Concat", "Unsqueeze", "Squeeze"):
        return None
    [value] = node.outputs
    found = elements(value)
    if found is None or not all(isinstance(e, int) for e in found) or value.shape is None or value.dtype is None:
        return None
    if len(value.shape) == 0 and len(found) != 1:
        return None
    array = np.array(found, value.dtype.numpy())
    return [array.reshape(()) if len(value.shape) == 0 else array]


def _is_foldable(value: ir.Value) -> bool:
    """A constant that numpy can hold as it is."""
    if value.const_value is None or value.is_graph_input():
        return False
    dtype = value.const_value.dtype
    return dtype.bitwidth >= 8 and dtype in _NATIVE


_NATIVE = {
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.DOUBLE,
    ir.DataType.BOOL,
    *(ir.DataType[f"{sign}INT{bits}"] for sign in ("", "U") for bits in (8, 16, 32, 64)),
}


def _bytes(value: ir.Value) -> int:
    if value.shape is None or not value.shape.is_static() or value.dtype is None:
        return 0
    return int(np.prod(value.shape.numpy(), dtype=np.int64)) * max(value.dtype.bitwidth // 8, 1)
