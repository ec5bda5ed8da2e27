"""Norms, reductions and softmax: along some axes they work on each channel alone, along others on all of them.

Where a sum, a mean or a variance is taken over the channels, it is another one when a channel goes, even if no weight
reads it: only the width of a model runs through such an axis, and only for one who asks for it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import constant
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.transform.channels.flow import Axes, Flow, Kept, Rule
from qcompile.passes.transform.channels.indices import FROZEN


def _channel_norm(node: ir.Node, flow: Flow) -> list[Axes | None]:
    """BatchNormalization and InstanceNormalization: operands of one value for each channel."""
    x = flow.axes(node, 0)
    rows = [flow.axes(node, i) for i in range(1, len(node.inputs))]
    if x is None or len(x) < 2 or None in rows:
        return flow.freeze_inputs(node)
    flow.join(x[1], *(row[0] for row in rows if row is not None))
    if node.op_type == "InstanceNormalization":
        flow.freeze(*x[2:])
    return [x, *(flow.frozen(v) for v in node.outputs[1:])]


def _group_norm(node: ir.Node, flow: Flow) -> list[Axes | None]:
    """GroupNormalization, with operands of one value for each channel or, before opset 21, for each group."""
    x, rows = flow.axes(node, 0), [flow.axes(node, i) for i in (1, 2)]
    channels = x[1] if x is not None else None
    if x is None or channels is None or None in rows:
        return flow.freeze_inputs(node)
    groups = channels.reshape(node.attributes["num_groups"].as_int(), -1)
    flow.freeze(*x[2:])
    flow.indices.unite(groups, groups[:, :1])
    for row in rows:
        if row is not None and row[0] is not None:
            flow.join(row[0], channels if len(row[0]) == len(channels) else groups[:, 0])
    return [x]


def _fewer_groups(node: ir.Node, kept: Kept, _: Names) -> None:
    mask = kept.masks(node.inputs[0]).get(1)
    if mask is not None:
        left = mask.reshape(node.attributes["num_groups"].as_int(), -1)[:, 0].sum()
        node.attributes["num_groups"] = ir.AttrInt64("num_groups", int(left))


def _row_norm(node: ir.Node, flow: Flow) -> list[Axes | None]:
    """LayerNormalization and its kin: over the last axes, with operands that broadcast."""
    operands = [flow.axes(node, i) for i, v in enumerate(node.inputs) if v is not None]
    known = [axes for axes in operands if axes is not None]
    if len(known) < len(operands):
        return flow.freeze_inputs(node)
    result = flow.broadcast(*known)
    over = result[node.attributes.get_int("axis", -1) % len(result) :]
    flow.freeze(*over[:-1])
    flow.width += [axis for axis in over[-1:] if axis is not None]
    return [result if i in (0, _SUM) else flow.frozen(v) for i, v in enumerate(node.outputs)]


_SUM = 3
"""The output of a norm that adds first, with what it added."""


def _softmax(node: ir.Node, flow: Flow) -> list[Axes | None]:
    x = flow.axes(node, 0)
    if x is None:
        return flow.freeze_inputs(node)
    along = node.attributes.get_int("axis", -1) % len(x)
    flow.freeze(x[along])
    flow.heads += [axis for i, axis in enumerate(x) if i != along and axis is not None]
    return [x]


def _reduce(node: ir.Node, flow: Flow) -> list[Axes | None]:
    x = flow.axes(node, 0)
    asked = constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    given = node.attributes.get_ints("axes", ()) if asked is None else [int(a) for a in asked.reshape(-1)]
    if x is None or not given:
        return flow.freeze_inputs(node)
    over = {axis % len(x) for axis in given}
    for axis in over:
        along = x[axis]
        if node.op_type in _SUMS and along is not None:
            flow.width.append(along)
        else:
            flow.freeze(along)
    keeps = node.attributes.get_int("keepdims", 1)
    one = np.full(1, FROZEN)
    return [tuple(one if i in over else axis for i, axis in enumerate(x) if keeps or i not in over)]


_SUMS = ("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2")

NORMS = {
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), Rule(_channel_norm)),
    "GroupNormalization": Rule(_group_norm, _fewer_groups),
    **dict.fromkeys(
        (
            "LayerNormalization",
            "RMSNormalization",
            "SimplifiedLayerNormalization",
            "SkipLayerNormalization",
            "SkipSimplifiedLayerNormalization",
        ),
        Rule(_row_norm),
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), Rule(_softmax)),
    **dict.fromkeys((*_SUMS, "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp"), Rule(_reduce)),
}
