"""Edits that every prepare pass makes: fresh names, readers of a value, taking a node out."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.graph import graphs, name_of


class Names:
    """The names in use in a model, so that new ones are unique over all its graphs."""

    def __init__(self, model: ir.Model) -> None:
        self._used: set[str | None] = set()
        for graph in graphs(model):
            self._used.update(v.name for v in graph.inputs)
            self._used.update(graph.initializers)
            for node in graph:
                self._used.add(node.name)
                self._used.update(v.name for v in node.outputs)

    def fresh(self, base: str) -> str:
        """`base`, or `base_1`, `base_2`, ... where it is taken."""
        name, number = base, 0
        while name in self._used:
            number += 1
            name = f"{base}_{number}"
        self._used.add(name)
        return name


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads `value`, once; None when there are others or a graph returns it."""
    uses = value.uses()
    return next(iter(uses)).node if len(uses) == 1 and not value.is_graph_output() else None


def is_own(value: ir.Value, node: ir.Node) -> bool:
    """`value` is made in the graph of `node` and read by `node` alone, once."""
    producer = value.producer()
    return producer is not None and producer.graph is node.graph and sole_reader(value) is node


def bypass(node: ir.Node, replacement: ir.Value, take_name: bool = False) -> bool:
    """Let every reader of the first output of `node` read `replacement`, and remove `node`.

    A graph output keeps its name: `replacement` takes it over where a node of the same graph makes
    it and no graph returns it already. `take_name` asks for that always: for a `replacement` that
    until now held another value (a convolution without its bias), so that a name never changes its
    meaning between the user's model and the compiled one.

    Returns:
        False, with nothing changed, where that is impossible or another output of `node` is used.
    """
    value = node.outputs[0]
    if any(v.uses() or v.is_graph_output() for v in node.outputs if v is not value):
        return False
    if value.is_graph_output():
        producer = replacement.producer()
        if producer is None or producer.graph is not node.graph or replacement.is_graph_output():
            return False
        take_name = True
    if value.is_graph_output():
        replacement.type, replacement.shape = value.type or replacement.type, value.shape or replacement.shape
    inherit_type(replacement, value)
    name, value.name = name_of(value), None
    value.replace_all_uses_with(replacement, replace_graph_outputs=True)
    if take_name:
        replacement.name = name
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    return True


def inherit_type(value: ir.Value, old: ir.Value) -> None:
    """Give `value` the type and shape of `old` where it has none."""
    if value.type is None:
        value.type = old.type
    if value.shape is None:
        value.shape = old.shape


def is_unread(node: ir.Node) -> bool:
    """No node reads an output of `node`, and no graph returns one."""
    return not any(v.uses() or v.is_graph_output() for v in node.outputs)


def remove_unread(graph: ir.Graph) -> bool:
    """Remove the nodes and initializers of `graph` that nobody reads; True if there were any.

    Readers stand behind what they read, so one walk backwards is enough.
    """
    modified = False
    for node in reversed(graph):
        if is_unread(node):
            graph.remove(node, safe=True)
            modified = True
    for name, value in list(graph.initializers.items()):
        if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            del graph.initializers[name]
            modified = True
    return modified
