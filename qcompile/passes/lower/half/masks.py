"""Attention masks of -3.4e38 become masks of -32768, which a half type holds with room for the scores.

    softmax(s + m) = softmax(s + max(m, -2^15))

since exp(x) is 0 in float32 below -104, so that a masked position has no weight either way. It is true of every row
with a position that is not masked; rows without one mean nothing. Scores beyond 3e4 would overflow before.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import add_initializer, constant, is_float32, nodes
from qcompile.compiler.provenance import stamp
from qcompile.compiler.statistics import StatisticsTable
from qcompile.passes.lower.half.ranges import HALF, origins
from qcompile.passes.prepare.surgery import Names

_LOWEST = np.float32(-(2.0**15))
_CARRY = {
    "Add", "And", "Cast", "Concat", "Expand", "Gather", "Identity", "Mul", "Reshape", "Slice", "Squeeze", "Transpose",
    "Unsqueeze", "Where",
}  # fmt: skip
"""Operators that masks are made with."""


def bound_masks(
    model: ir.Model, ranges: StatisticsTable, dtype: ir.DataType, made_by: str
) -> tuple[StatisticsTable, set[ir.Node]]:
    """Bound what is added to the argument of a Softmax and does not fit into `dtype`.

    Returns:
        `ranges` without the sums, which are smaller now, and the nodes that it made: they must read float32.
    """
    names, sums, bounded = Names(model), set[str](), dict[ir.Value, ir.Value]()
    for node in list(nodes(model)):
        add = node.inputs[0].producer() if node.op_type == "Softmax" and node.inputs[0] is not None else None
        if add is None or add.op_type != "Add" or len(add.outputs[0].uses()) > 1:
            continue
        for position, value in enumerate(add.inputs):
            if value is not None and is_float32(value) and _is_mask(value, ranges, dtype):
                if value not in bounded:
                    bounded[value] = _bounded(value, names, made_by)
                add.replace_input_with(position, bounded[value])
                sums.add(str(add.outputs[0].name))
    made = (value.producer() for value in bounded.values())
    return ranges.without(sums), {node for node in made if node is not None}


def _is_mask(value: ir.Value, ranges: StatisticsTable, dtype: ir.DataType) -> bool:
    """Whether `value` holds numbers too low for `dtype`, as samples show or as a constant behind it says."""
    lowest = HALF[dtype].low
    seen = [r for origin in origins(value) if (r := ranges.range_of(str(origin.name))) is not None]
    if seen:
        return 2 * min(r.low for r in seen) < lowest and max(abs(r.high) for r in seen) < float(-_LOWEST)
    waiting, known = [value], set[ir.Value]()
    while waiting:
        current = waiting.pop()
        array = constant(current) if is_float32(current) else None
        if array is not None and array.size and float(array.min()) < lowest and np.isfinite(array).all():
            return True
        producer = current.producer()
        if producer is not None and producer.op_type in _CARRY and current not in known:
            known.add(current)
            waiting += [v for v in producer.inputs if v is not None]
    return False


def _bounded(value: ir.Value, names: Names, made_by: str) -> ir.Value:
    """max(value, -2^15), right behind where `value` is made."""
    producer, graph = value.producer(), value.graph
    assert isinstance(graph, ir.Graph)
    array = constant(value)
    if array is not None:
        made = add_initializer(graph, names.fresh(f"{value.name}_bounded"), np.maximum(array, _LOWEST))
        stamp(made, made_by, [value])
        return made
    bound = add_initializer(graph, names.fresh(f"{value.name}_bound"), np.array(_LOWEST))
    node = ir.node("Max", [value, bound], name=names.fresh(f"{value.name}_bounded.Max"))
    node.outputs[0].name, node.outputs[0].shape = names.fresh(f"{value.name}_bounded"), value.shape
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    stamp(node, made_by, [producer] if producer is not None else [use.node for use in value.uses()])
    if producer is not None:
        graph.insert_after(producer, node)
    else:
        graph.insert_before(next(iter(graph)), node)
    return node.outputs[0]
