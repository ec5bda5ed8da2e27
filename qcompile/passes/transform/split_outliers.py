"""LLM.int8(): the few columns of an activation that hold outliers stay float, the rest can become int8.

    O = {j : max |X_j| >= threshold}
    X W = (X * keep) W + X_O W_O        keep_j = 0 for j in O, else 1;  W in the first product without its rows O

In language models a handful of columns holds values a hundred times as large as all others; a row that is
quantized with them has no codes left for the rest. max |X_j| is over the calibration samples, so O is
fixed. X: float32 [..., K]; W: float32 [K, N]; X_O: [..., |O|]; W_O: [|O|, N]. Layers that read one tensor
share its two parts. Source: Dettmers et al., "LLM.int8()", 2022 (arXiv:2208.07339), which finds O anew
in every run; section 3.2.

Errors: none of its own. A layer more than half of whose columns hold outliers stays float as a whole: two
products would take longer than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.codes import insert_behind
from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import add_initializer, constant, graphs, name_of
from qcompile.compiler.passes import Fact, Pass, Phase, StatisticRequest
from qcompile.compiler.plan import Form
from qcompile.compiler.provenance import stamp
from qcompile.compiler.statistics import Channels
from qcompile.compiler.units import Candidate, candidates
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.prepare.untie import set_constant

Columns = npt.NDArray[np.int64]
_COLUMNS = Channels(-1)
_NAMED = 4


class SplitOutliers(Pass):
    """Give the outlier columns of each linear layer's input a float product of their own."""

    name: ClassVar[str] = "split-outliers"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.STATISTICS})
    float_equivalent: ClassVar[bool] = True

    threshold: float = Field(default=6.0, gt=0, description="magnitude from which a column holds outliers")

    def statistics(self, model: ir.Model, context: CompileContext) -> Sequence[StatisticRequest]:
        return [StatisticRequest(name_of(_input(layer)), _COLUMNS) for layer in _layers(model, context)]

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        splitter, layers = _Splitter(model, context, self.name), _layers(model, context)
        found: dict[str, tuple[int, int]] = {}
        unseen: list[str] = []
        for layer in layers:
            seen = context.statistics.channels_of(name_of(_input(layer)), -1)
            if seen is None:
                unseen.append(str(layer.node.name))
                continue
            largest = np.maximum(np.abs(seen.low), np.abs(seen.high))
            columns = np.flatnonzero(largest >= self.threshold).astype(np.int64)
            if not columns.size:
                continue
            found[str(layer.node.name)] = columns.size, largest.size
            if 2 * columns.size > largest.size:
                splitter.keep_float(layer.node, columns.size, largest.size)
            else:
                splitter.split(layer, columns, largest.size)
        context.notice(_summary(found, len(layers), self.threshold))
        if unseen:
            context.notice(
                f"outlier columns of {len(unseen)} linear layers are not known, such as {unseen[0]}: "
                "no sample reaches them, or the number of their columns is not fixed"
            )
        return bool(splitter.parts)


def _summary(found: dict[str, tuple[int, int]], layers: int, threshold: float) -> str:
    """How many layers read outliers, and which the most; the report has the number of each layer as its reason."""
    most = sorted(found.items(), key=lambda item: item[1][0] / item[1][1], reverse=True)
    named = ", ".join(f"{name} {columns} of {size}" for name, (columns, size) in most[:_NAMED])
    text = f"outlier columns (|x| >= {threshold:g}) in {len(found)} of {layers} linear layers"
    return text + (f", the most in {named}" if named else "")


def _layers(model: ir.Model, context: CompileContext) -> list[Candidate]:
    """The linear layers whose input the target can quantize as the model runs."""
    return [
        candidate
        for graph in graphs(model)
        for candidate in candidates(graph, context.target)
        if candidate.node.op_type in ("MatMul", "Gemm")
        and {Form.DYNAMIC, Form.BLOCKS}.intersection(candidate.row.forms)
        and not candidate.obstacle
    ]


def _input(layer: Candidate) -> ir.Value:
    value = layer.node.inputs[0]
    assert value is not None
    return value


class _Splitter:
    """Writes products in two parts."""

    def __init__(self, model: ir.Model, context: CompileContext, made_by: str) -> None:
        self.context, self.made_by, self.names = context, made_by, Names(model)
        self.parts: dict[tuple[ir.Graph, ir.Value], tuple[ir.Value, ir.Value]] = {}

    def split(self, layer: Candidate, columns: Columns, size: int) -> None:
        node, x = layer.node, _input(layer)
        graph, matrix, last = node.graph, constant(node.inputs[1]), layer.bias or node
        assert isinstance(graph, ir.Graph)
        assert matrix is not None
        rows_last = bool(node.attributes.get_int("transB", 0))
        rest, outliers = self.parts_of(graph, x, columns, size, node)
        without = matrix.copy()
        without[(slice(None), columns) if rows_last else columns] = 0
        taken = matrix[:, columns].T if rows_last else matrix[columns]
        node.replace_input_with(0, rest)
        set_constant(node, 1, without, self.names)
        weight = add_initializer(graph, self.names.fresh(f"{node.name}_outlier_weight"), np.ascontiguousarray(taken))
        result = last.outputs[0]
        exact = self.node("MatMul", [outliers, weight], f"{node.name}_outliers", result, [node])
        self.keep_float(exact, columns.size, size)
        graph.insert_before(node, exact)
        total = self.node("Add", [result, exact.outputs[0]], f"{node.name}_total", result, [node])
        result.replace_all_uses_with(total.outputs[0], replace_graph_outputs=True)
        total.replace_input_with(0, result)
        name = name_of(result)
        result.name, total.outputs[0].name = self.names.fresh(f"{name}_rest"), name
        graph.insert_after(last, total)

    def parts_of(
        self, graph: ir.Graph, x: ir.Value, columns: Columns, size: int, reader: ir.Node
    ) -> tuple[ir.Value, ir.Value]:
        """`x` with zeros in the place of its outlier columns, and these columns."""
        if (graph, x) not in self.parts:
            keep = np.ones(size, np.float32)
            keep[columns] = 0
            mask = add_initializer(graph, self.names.fresh(f"{x.name}_keep"), keep)
            numbers = add_initializer(graph, self.names.fresh(f"{x.name}_outlier_columns"), columns)
            rest = self.node("Mul", [x, mask], f"{x.name}_without_outliers", x, [reader])
            taken = self.node("Gather", [x, numbers], f"{x.name}_outliers", x, [reader])
            taken.attributes.add(ir.AttrInt64("axis", -1))
            taken.outputs[0].shape = ir.Shape([*x.shape[:-1], columns.size]) if x.shape is not None else None
            insert_behind(graph, x, taken)
            insert_behind(graph, x, rest)
            self.parts[graph, x] = rest.outputs[0], taken.outputs[0]
        return self.parts[graph, x]

    def keep_float(self, node: ir.Node, columns: int, size: int) -> None:
        self.context.plan.pin(str(node.name), f"{columns} of {size} columns of the layer's input hold outliers")

    def node(
        self, op_type: str, inputs: Sequence[ir.Value], name: str, like: ir.Value, sources: Sequence[ir.Node]
    ) -> ir.Node:
        """A node with one result of the type and shape of `like`; both are called `name`."""
        made = ir.node(op_type, inputs, name=self.names.fresh(name))
        made.outputs[0].name = made.name
        made.outputs[0].type, made.outputs[0].shape = like.type, like.shape
        stamp(made, self.made_by, sources)
        return made
