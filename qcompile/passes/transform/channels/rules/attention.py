"""Attention as one operator: a head of the values goes with its queries and keys.

    y[h] = softmax(q[h] k[g]^T) v[g],  g = h / (queries : keys)

Keys and values that several heads share go with all of them; where they cannot, since a cache leaves the model, one
query of each such set goes. The size of a head stays: the products are scaled by its root.

Source: the ONNX specification of Attention, and the contributed operators of ONNX Runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import is_constant
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.transform.channels.flow import Axes, Flow, Kept, Mask, Rule
from qcompile.passes.transform.channels.group import Side
from qcompile.passes.transform.channels.indices import Ids


@dataclass(frozen=True)
class _Form:
    """How an operator names its heads, and at which input it has what.

    Attributes:
        queries, shared: attributes with the numbers of heads.
        scores: what is added to the products.
        past: caches of keys and of values.
        rows: the biases of queries, keys and values, behind one another.
        sinks: one value for each head of the queries.
    """

    queries: str
    shared: str
    scores: int
    past: tuple[int, int]
    rows: int | None = None
    sinks: int | None = None


_ATTENTION = _Form("q_num_heads", "kv_num_heads", scores=3, past=(4, 5))
_MULTI_HEAD = _Form("num_heads", "num_heads", scores=5, past=(6, 7), rows=3)
_GROUPED = _Form("num_heads", "kv_num_heads", scores=10, past=(3, 4), sinks=11)


def _flow(form: _Form, node: ir.Node, flow: Flow) -> list[Axes | None]:
    columns = _columns(form, node, flow)
    if columns is None:
        return flow.freeze_inputs(node)
    queries, keys, values = (_heads(flow, axis, count) for axis, count in columns)
    flow.join(keys, values)
    flow.regroup([queries], [values, flow.fresh(len(queries) // len(values))])
    flow.heads.append(queries)
    for index in range(3, len(node.inputs)):
        axes = flow.axes(node, index)
        if not axes:
            continue
        if index in form.past:
            flow.join(values, axes[1])
        elif index == form.sinks:
            flow.join(queries, axes[0])
        elif index == form.rows:
            flow.join(np.concatenate([axis for axis, _ in columns]), axes[0])
        elif index == form.scores and len(axes) > 2 and axes[-3] is not None and len(axes[-3]) > 1:
            flow.join(queries, axes[-3])
        else:
            flow.freeze(*axes)
    found = [flow.frozen(v) or (None,) * (4 if i else 3) for i, v in enumerate(node.outputs)]
    wide = np.repeat(queries, len(columns[2][0]) // len(values))
    runs = [(2, wide) if len(found[0]) == 3 else (1, queries), (1, values), (1, values), (1, queries)]
    return [(*axes[:i], axis, *axes[i + 1 :]) for axes, (i, axis) in zip(found, runs, strict=False)]


def _columns(form: _Form, node: ir.Node, flow: Flow) -> list[tuple[Ids, int]] | None:
    """The axes along which heads lie in queries, keys and values, and how many; None for a form without a rule."""
    given = [flow.axes(node, i) for i in range(3)]
    counts = [node.attributes.get_int(name, 0) for name in (form.queries, form.shared, form.shared)]
    if given[0] is not None and given[1] is given[2] is None and form is _GROUPED:
        packed = given[0][-1]
        if packed is None:
            return None
        ends = np.cumsum(counts) * (len(packed) // sum(counts))
        return list(zip(np.split(packed, ends[:-1]), counts, strict=True))
    found = []
    for axes, count in zip(given, counts, strict=True):
        place = {3: 2, 4: 1}.get(len(axes or ()))
        axis = axes[place] if axes is not None and place is not None else None
        if axes is None or axis is None or (place == 2 and not count):
            return None
        flow.freeze(*(other for i, other in enumerate(axes) if i != place))
        found.append((axis, count if place == 2 else len(axis)))
    return found if len({len(axes or ()) for axes in given}) == 1 else None


def _heads(flow: Flow, axis: Ids, count: int) -> Ids:
    """The heads whose columns lie side by side along an axis."""
    rows = axis.reshape(count, -1)
    flow.indices.unite(rows, rows[:, :1])
    return rows[:, 0]


def _fewer_heads(form: _Form, node: ir.Node, kept: Kept, _: Names) -> None:
    counts = [node.attributes.get_int(name, 0) for name in (form.queries, form.shared)]
    masks = [kept.masks(v).get(2) for v in node.inputs[:2]]
    if masks[0] is not None and node.inputs[1] is None:
        packed = masks[0].reshape(counts[0] + 2 * counts[1], -1)[:, 0]
        masks = [packed[: counts[0]], packed[counts[0] : sum(counts)]]
    for name, count, mask in reversed(list(zip((form.queries, form.shared), counts, masks, strict=True))):
        if mask is not None and count:
            node.attributes[name] = ir.AttrInt64(name, _count(mask, count))


def _count(mask: Mask, heads: int) -> int:
    return int(mask.reshape(heads, -1)[:, 0].sum())


# com.microsoft.Attention, which holds the projections


def _projecting(node: ir.Node, flow: Flow) -> list[Axes | None]:
    x, weight, bias = (flow.axes(node, i) for i in range(3))
    if x is None or weight is None or weight[1] is None or not is_constant(node.inputs[1]):
        return flow.freeze_inputs(node)
    flow.sides |= {((node, 1), 0): Side.READS, ((node, 1), 1): Side.WRITES}
    flow.join(x[-1], weight[0])
    if bias is not None:
        flow.join(weight[1], bias[0])
    count = node.attributes.get_int("num_heads", 0)
    parts = np.split(weight[1], np.cumsum(_hidden(node, len(weight[1])))[:-1])
    queries, keys, values = (_heads(flow, part, count) for part in parts)
    flow.join(queries, keys, values)
    flow.heads.append(queries)
    for index in range(3, len(node.inputs)):
        axes = flow.axes(node, index) or ()
        heads = {4: axes[2:3], 5: axes[1:2]}.get(index, ())
        flow.join(queries, *(axis for axis in heads if axis is None or len(axis) > 1))
        flow.freeze(*(axis for i, axis in enumerate(axes) if (index, i) not in ((4, 2), (5, 1))))
    found: list[Axes | None] = [(*x[:-1], np.repeat(queries, len(parts[2]) // count))]
    return found + [(None, None, queries, None, None) for _ in node.outputs[1:]]


def _hidden(node: ir.Node, columns: int) -> list[int]:
    return list(node.attributes.get_ints("qkv_hidden_sizes", ())) or [columns // 3] * 3


def _fewer_projected(node: ir.Node, kept: Kept, _: Names) -> None:
    mask = kept.masks((node, 1)).get(1)
    if mask is None:
        return
    sizes = _hidden(node, len(mask))
    parts = np.split(mask, np.cumsum(sizes)[:-1])
    count = _count(parts[0], node.attributes.get_int("num_heads", 0))
    node.attributes["num_heads"] = ir.AttrInt64("num_heads", count)
    if "qkv_hidden_sizes" in node.attributes:
        left = [int(part.sum()) for part in parts]
        node.attributes["qkv_hidden_sizes"] = ir.AttrInt64s("qkv_hidden_sizes", left)


# Rotary embeddings


def _rotary(node: ir.Node, flow: Flow) -> list[Axes | None]:
    x, count = flow.axes(node, 0), node.attributes.get_int("num_heads", 0)
    along = x[2 if len(x) == 3 else 1] if x is not None else None
    if x is None or along is None or (len(x) == 3 and not count):
        return flow.freeze_inputs(node)
    for index in range(1, len(node.inputs)):
        flow.freeze(*(flow.axes(node, index) or ()))
    flow.freeze(*(axis for axis in x if axis is not along))
    if len(x) == 3:
        _heads(flow, along, count)
    return [x]


def _fewer_rotated(node: ir.Node, kept: Kept, _: Names) -> None:
    for axis, mask in kept.masks(node.inputs[0]).items():
        if node.attributes.get_int("num_heads", 0):
            count = _count(mask, node.attributes["num_heads"].as_int()) if axis == 2 else int(mask.sum())
            node.attributes["num_heads"] = ir.AttrInt64("num_heads", count)


ATTENTION = {
    "GroupQueryAttention": Rule(partial(_flow, _GROUPED), partial(_fewer_heads, _GROUPED)),
    "MultiHeadAttention": Rule(partial(_flow, _MULTI_HEAD), partial(_fewer_heads, _MULTI_HEAD)),
    "Attention": Rule(partial(_flow, _ATTENTION), partial(_fewer_heads, _ATTENTION)),
    "com.microsoft.Attention": Rule(_projecting, _fewer_projected),
    "RotaryEmbedding": Rule(_rotary, _fewer_rotated),
}
