"""Which nodes compute in half precision: the assignment of least memory traffic, Casts included.

    traffic = sum over nodes of bytes read and written (2 or 4 for each element)
            + sum over tensors of 6 bytes for each element and one launch, for each Cast

which is the same minimum cut as the placement of int8 (compiler/placement.py), with half values in the place of
codes. Products become half whatever their Casts cost, unless a rule keeps them. Since a Cast costs more than most
nodes gain, half precision comes in regions; on a tie a node is half.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from qcompile.compiler.graph import graphs, is_constant, is_float32, name_of
from qcompile.compiler.placement import Conversion, Operation, place
from qcompile.compiler.plan import Form
from qcompile.compiler.units import elements
from qcompile.passes.lower.half.operands import Operands
from qcompile.passes.lower.half.rules import PRODUCTS

_LAUNCH = 1 << 20
"""Bytes that a GPU moves in the time of one launch, to the order of magnitude."""

_PRODUCT_GAIN = float(1 << 50)
_HALF = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


def activations(model: ir.Model) -> list[ir.Value]:
    """Every float32 value that is no constant, in graph order."""
    found: dict[ir.Value, None] = {}
    for graph in graphs(model):
        found.update((v, None) for v in graph.inputs if is_float32(v) and not is_constant(v))
        for node in graph:
            found.update((v, None) for v in node.outputs if is_float32(v) and not is_constant(v) and v.name)
    return list(found)


def reads_any_type(node: ir.Node) -> bool:
    """Whether a float32 input of the node may as well be half although its outputs are something else."""
    return node.op_type == "Cast" and node.domain == ""


def half_nodes(
    model: ir.Model, members: Mapping[ir.Node, Operands], kept: Collection[ir.Node], kept_tensors: Collection[str]
) -> set[ir.Node]:
    """The members that compute in half precision; `kept` and whatever touches `kept_tensors` do not."""
    values = activations(model)
    names = {name_of(v) for v in values}
    outside: list[str] = []
    for value in values:
        needed = value.is_graph_output()
        for node, position in value.uses():
            typed = members.get(node)
            needed |= position not in typed.inputs if typed is not None else not reads_any_type(node)
        if needed:
            outside.append(name_of(value))
    operations, by_name = [], {str(node.name): node for node in members}
    for node, typed in members.items():
        reads = [name_of(v) for i in typed.inputs if (v := node.inputs[i]) is not None]
        writes = [name_of(node.outputs[i]) for i in typed.outputs]
        touched = [*(node.inputs[i] for i in typed.inputs), *(node.outputs[i] for i in typed.outputs)]
        gain = _PRODUCT_GAIN if node.op_type in PRODUCTS else 2.0 * sum(map(elements, touched))
        if node.op_type == "Cast" and {v.dtype for v in (*node.inputs, *node.outputs) if v} & _HALF:
            gain = _cast(touched[0])  # between two half values it goes away
        operations.append(
            Operation(
                name=str(node.name),
                float_time=gain,
                times={} if node in kept else {Form.FULL: 0.0},
                reads=tuple(name for name in reads if name in names),
                writes=tuple(writes),
            )
        )
    costs = {name_of(v): _cast(v) for v in values}
    forms = place(operations, {name: Conversion(cost, cost) for name, cost in costs.items()}, outside, kept_tensors)
    return {by_name[name] for name, form in forms.items() if form is not Form.FLOAT}


def _cast(value: ir.Value | None) -> float:
    """What a Cast of `value` costs."""
    return 6 * elements(value) + _LAUNCH
