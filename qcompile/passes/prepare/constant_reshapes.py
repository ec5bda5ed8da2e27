"""Reshape and Expand to a shape that is known element by element get it as a constant."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import add_initializer, graphs, is_constant
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.passes.prepare.dimensions import Elements, dimension, elements
from qcompile.passes.prepare.surgery import Names, remove_unread


class ConstantReshapes(Pass):
    """Write `x.reshape(x.size(0), x.size(1), 12, 32)` as Reshape(x, [0, 0, 12, 32]).

    Exporters compute the shape with Shape, Gather, Unsqueeze and Concat, a handful of nodes for each
    Reshape at every run. A dimension that x has at the same place becomes 0 (copied), one that it has
    not becomes -1 (inferred) when it is the only one; with more of them the shape stays computed.
    The shape of an Expand is written so where x has all of its named dimensions: they become 1.

    Source: the ONNX specification of Reshape and Expand.
    """

    name: ClassVar[str] = "constant-reshapes"
    phase: ClassVar[Phase] = Phase.PREPARE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    float_equivalent: ClassVar[bool] = True

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        names = Names(model)
        modified = False
        for graph in list(graphs(model)):
            changed = [
                _fix(node, graph, names)
                for node in list(graph)
                if node.op_type in ("Reshape", "Expand") and not node.domain
            ]
            if any(changed):
                modified = True
                remove_unread(graph)
        return modified


def _fix(node: ir.Node, graph: ir.Graph, names: Names) -> bool:
    source, wanted = node.inputs[0], node.inputs[1]
    if source is None or source.shape is None or is_constant(wanted) or node.attributes.get_int("allowzero", 0) != 0:
        return False
    known, given = elements(wanted), tuple(dimension(d) for d in source.shape)
    shape = (_constant_copies if node.op_type == "Expand" else _constant_shape)(known, given)
    if shape is None:
        return False
    if node.op_type == "Expand":  # a Reshape behind it may be known now
        node.outputs[0].shape = ir.Shape([d if n == 1 else n for n, d in zip(shape, given, strict=True)])
    node.replace_input_with(1, add_initializer(graph, names.fresh(f"{node.name}_shape"), np.array(shape, np.int64)))
    return True


def _constant_shape(wanted: Elements | None, source: Elements) -> list[int] | None:
    """The operand of Reshape that gives the elements `wanted`, if one does."""
    if wanted is None:
        return None
    shape: list[int] = []
    for i, size in enumerate(wanted):
        if isinstance(size, int):
            shape.append(size)
        elif _is_name(size) and i < len(source) and source[i] == size:
            shape.append(0)
        else:
            shape.append(-1)
    numbers = [s for s, size in zip(shape, wanted, strict=True) if isinstance(size, int)]
    return shape if shape.count(-1) <= 1 and 0 not in numbers else None


def _constant_copies(wanted: Elements | None, source: Elements) -> list[int] | None:
    """The operand of Expand that gives the elements `wanted`, if one does; of as many axes as the source."""
    if wanted is None or len(wanted) != len(source):
        return None
    shape = [
        size if isinstance(size, int) else 1 if _is_name(size) and size == given else 0
        for size, given in zip(wanted, source, strict=True)
    ]
    return shape if all(size > 0 for size in shape) else None


def _is_name(size: int | str | None) -> bool:
    """Whether equal names mean equal sizes: exporters write a question mark for whatever they do not know."""
    return isinstance(size, str) and any(c.isalnum() for c in size)
