"""Write the decision into the graph: types, half constants, and one Cast for each value and direction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import add_initializer, constant, is_constant, name_of, nodes
from qcompile.compiler.operators.calls import forget_unused
from qcompile.compiler.operators.definition import DOMAIN
from qcompile.compiler.provenance import stamp
from qcompile.passes.lower.half.operands import Operands, half_variant
from qcompile.passes.lower.half.regions import activations, reads_any_type
from qcompile.passes.prepare.surgery import Names


class Rewrite:
    """Turns nodes of one model to `dtype`.

    Attributes:
        casts: how many Casts it has made.
    """

    def __init__(self, model: ir.Model, members: Mapping[ir.Node, Operands], dtype: ir.DataType, made_by: str) -> None:
        self.model, self.members, self.dtype, self.made_by = model, members, dtype, made_by
        self.names, self.suffix = Names(model), dtype.name.lower()
        self.constants: dict[ir.Value, ir.Value] = {}
        self.casts = 0

    def run(self, half: Collection[ir.Node]) -> None:
        """Let the nodes `half` compute in half precision."""
        values = activations(self.model)
        written = {node.outputs[i] for node in half for i in self.members[node].outputs}
        for node in half:
            for position in self.members[node].inputs:
                value = node.inputs[position]
                if value is not None and is_constant(value):
                    scale = position == 1 and node.op_type in ("QuantizeLinear", "DequantizeLinear")
                    node.replace_input_with(position, self.constant(value, scale))
        for value in values:
            uses = [use for use in value.uses() if not reads_any_type(use.node)]
            as_half = [use for use in uses if use.node in half and use.idx in self.members[use.node].inputs]
            if value in written:
                self.read_as_float(value, [use for use in uses if use not in as_half])
                value.type = ir.TensorType(self.dtype)
            elif as_half:
                made = self.cast(value, self.dtype)
                for reader, position in as_half:
                    reader.replace_input_with(position, made)
        for node in half:
            self.retype(node)
        self.remove_idle_casts()
        self.remove_unread()
        forget_unused(self.model)

    def constant(self, old: ir.Value, scale: bool = False) -> ir.Value:
        """The half copy of a constant, made once. A scale stays positive: in a channel of next to nothing that of
        the codes may vanish, which TensorRT refuses, and which divides by zero elsewhere."""
        if old not in self.constants:
            array = constant(old)
            assert array is not None
            producer = old.producer()
            graph = old.graph if producer is None else producer.graph
            assert isinstance(graph, ir.Graph)
            with np.errstate(under="ignore"):
                rounded = array.astype(self.dtype.numpy())
            if scale:
                smallest = np.nextafter(np.zeros_like(rounded), np.ones_like(rounded))
                rounded = np.where((rounded == 0) & (array != 0), smallest, rounded)
            made = add_initializer(graph, self.names.fresh(f"{old.name}_{self.suffix}"), rounded, self.dtype)
            stamp(made, self.made_by, [old])
            self.constants[old] = made
        return self.constants[old]

    def read_as_float(self, value: ir.Value, uses: Iterable[tuple[ir.Node, int]]) -> None:
        """Who needs float32 reads a Cast behind `value`; the Cast keeps the name of a graph output."""
        uses, returned = list(uses), value.is_graph_output()
        if not uses and not returned:
            return
        made = self.cast(value, ir.DataType.FLOAT)
        for reader, position in uses:
            reader.replace_input_with(position, made)
        if returned:
            graph, name = value.graph, name_of(value)
            assert isinstance(graph, ir.Graph)
            for i, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[i] = made
            value.name, made.name = self.names.fresh(f"{name}_{self.suffix}"), name

    def cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        """`value` in another type, right behind where it is made, so that every body can read it."""
        producer, graph = value.producer(), value.graph
        stored = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else None
        if stored is not None and stored.dtype is to is self.dtype:
            return stored
        name = self.names.fresh(f"{value.name}_{to.name.lower()}")
        assert isinstance(graph, ir.Graph)
        of = [producer] if producer is not None else [use.node for use in value.uses()]
        node = ir.node("Cast", [value], {"to": int(to)}, name=self.names.fresh(f"{name}.Cast"))
        stamp(node, self.made_by, of)
        made = node.outputs[0]
        made.name, made.type, made.shape = name, ir.TensorType(to), value.shape
        if producer is None:
            graph.insert_before(next(iter(graph)), node)
        else:
            graph.insert_after(producer, node)
        self.casts += 1
        return made

    def retype(self, node: ir.Node) -> None:
        """What says its type in an attribute or in its name."""
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", int(self.dtype))
        variant = half_variant(node, self.dtype) if node.domain == DOMAIN else None
        if variant is not None:
            node.op_type = variant.name
            variant.declare(self.model)

    def remove_idle_casts(self) -> None:
        """Casts to the type that a value has got meanwhile."""
        for node in list(nodes(self.model)):
            if node.op_type != "Cast" or node.inputs[0] is None or node.outputs[0].is_graph_output():
                continue
            if node.inputs[0].dtype is node.outputs[0].dtype is self.dtype:
                node.outputs[0].replace_all_uses_with(node.inputs[0])
                assert node.graph is not None
                node.graph.remove(node, safe=True)

    def remove_unread(self) -> None:
        """Casts and float constants that only half nodes read."""
        for node in list(nodes(self.model)):
            if node.op_type == "Cast" and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
                assert node.graph is not None
                node.graph.remove(node, safe=True)
        for old in self.constants:
            graph = old.graph
            if isinstance(graph, ir.Graph) and old.is_initializer() and not old.uses() and not old.is_graph_output():
                del graph.initializers[name_of(old)]
