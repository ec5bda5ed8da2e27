"""Put statistics into the graph: a copy of the model whose extra outputs are the reduced tensors.

A tensor inside a branch of an If is reduced where it lies; the branch that was not taken answers
with the statistic's identity. Inside a Loop the reductions are carried from iteration to iteration
and merged there. So one run of the model observes every tensor, whatever path it takes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import add_initializer
from qcompile.compiler.statistics import Component, Statistic

Key = tuple[str, str, str]
"""(tensor, statistic kind, component name)."""

Observed = dict[Key, tuple[Component, ir.Value]]


def observed_copy(model: ir.Model, wanted: Mapping[str, list[Statistic]]) -> tuple[ir.Model, list[Key]]:
    """A copy of `model` that yields the statistics only.

    Args:
        wanted: statistics to observe, by tensor name.

    Returns:
        The copy and, in the order of its outputs, what each of them (a float32 scalar) is. Tensors
        that do not exist, or lie in the body of a Scan, are missing from the list.
    """
    copy = model.clone()
    observed = _observe_graph(copy.graph, wanted)
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(value for _, value in observed.values())
    return copy, list(observed)


def _observe_graph(graph: ir.Graph, wanted: Mapping[str, list[Statistic]]) -> Observed:
    found: Observed = {}
    for node in list(graph):
        if node.op_type == "If":
            found |= _observe_if(graph, node, wanted)
        elif node.op_type == "Loop":
            found |= _observe_loop(graph, node, wanted)
    for value in [*graph.inputs, *(v for node in graph for v in node.outputs)]:
        for statistic in wanted.get(value.name or "", ()):
            for component in statistic.components:
                found[str(value.name), statistic.kind, component.name] = component, _reduce(graph, value, component)
    return found


def _reduce(graph: ir.Graph, value: ir.Value, component: Component) -> ir.Value:
    keep = {} if component.observe == "Size" else {"keepdims": 0}
    node = ir.node(component.observe, [value], attributes=keep)
    graph.append(node)
    if component.observe == "Size":
        node.outputs[0].name = f"{value.name}@{component.name}.int"
        node = ir.node("Cast", node.outputs, attributes={"to": int(ir.DataType.FLOAT)})
        graph.append(node)
    return _scalar(node.outputs[0], f"{value.name}@{component.name}")


def _scalar(value: ir.Value, name: str) -> ir.Value:
    value.name, value.type, value.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    return value


def _identity(graph: ir.Graph, component: Component, name: str) -> ir.Value:
    return add_initializer(graph, f"{name}.identity", np.array(component.identity, np.float32))


def _observe_if(graph: ir.Graph, node: ir.Node, wanted: Mapping[str, list[Statistic]]) -> Observed:
    branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    seen = [_observe_graph(branch, wanted) for branch in branches]
    found: Observed = {}
    for key in dict.fromkeys(k for s in seen for k in s):
        component = next(s[key][0] for s in seen if key in s)
        for branch, s in zip(branches, seen, strict=True):
            if key in s:
                branch.outputs.append(s[key][1])
            else:
                untaken = _identity(branch, component, f"{node.name}.{branch.name}.{'.'.join(key)}")
                through = ir.node("Identity", [untaken])
                branch.append(through)
                branch.outputs.append(_scalar(through.outputs[0], f"{untaken.name}.out"))
        found[key] = component, _new_output(node, len(node.outputs), f"{node.name}.{'.'.join(key)}")
    return found


def _observe_loop(graph: ir.Graph, node: ir.Node, wanted: Mapping[str, list[Statistic]]) -> Observed:
    body = node.attributes["body"].as_graph()
    inside = _observe_graph(body, wanted)
    carried = len(body.inputs) - 2
    found: Observed = {}
    for key, (component, value) in inside.items():
        name = f"{node.name}.{'.'.join(key)}"
        before = ir.Value(name=f"{name}.before", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))
        merged = ir.node(component.merge, [before, value])
        body.append(merged)
        body.inputs.append(before)
        body.outputs.insert(1 + carried, _scalar(merged.outputs[0], f"{name}.merged"))
        node.resize_inputs(2 + carried + 1)
        node.replace_input_with(2 + carried, _identity(graph, component, name))
        found[key] = component, _new_output(node, carried, name)
        carried += 1
    return found


def _new_output(node: ir.Node, position: int, name: str) -> ir.Value:
    """Insert an output at `position`; the outputs behind it move up with their names and uses."""
    node.resize_outputs(len(node.outputs) + 1)
    for i in range(len(node.outputs) - 1, position, -1):
        old, new = node.outputs[i - 1], node.outputs[i]
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.name = None
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    return _scalar(node.outputs[position], name)
