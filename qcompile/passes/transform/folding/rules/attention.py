"""Attention as one operator: its values carry a scale to its result, head by head.

    Y[:, h] = softmax(Q[:, h] K[:, g]^T) V[:, g]   with g = h // (query heads / key-value heads)

Queries and keys take none, and neither does a cache that goes in or comes out.
"""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.graph import rank
from qcompile.passes.transform.folding.moves import Equal, Join, Layout, Moves, Rules, keep

_VALUES = 2
_CACHE = (4, 5)


def _read(node: ir.Node, index: int, layout: Layout) -> list[Moves]:
    heads = _heads(node)
    if index != _VALUES or heads is None:
        return keep(node, layout, "other than as its values")
    queries, shared = heads
    if layout.ndim == 4:
        wide = layout.repeat(queries // shared, axis=1) if layout.shape[1] > 1 else layout
        return [[Equal(layout, layout[:, :, :1]), Join(node.outputs[0], wide[:, :, :1])]]
    channels = layout[:, :1].reshape(layout.shape[0], 1, shared, -1)
    wide = channels.repeat(queries // shared, axis=2).reshape(layout.shape[0], 1, -1)
    return [[Equal(layout, layout[:, :1]), Join(node.outputs[0], wide)]]


def _written(node: ir.Node, index: int, layout: Layout) -> list[Moves]:
    heads, values = _heads(node), node.inputs[_VALUES]
    if index != 0 or heads is None or values is None:
        return keep(node, layout, "whose heads are not known, or whose cache leaves the model")
    queries, shared = heads
    axis = 1 if layout.ndim == 4 else 2
    if layout.ndim == 4 and layout.shape[1] == 1:
        return [[Equal(layout, layout[:, :, :1]), Join(values, layout[:, :, :1])]]
    row = layout[:, :, :1] if layout.ndim == 4 else layout[:, :1].reshape(layout.shape[0], 1, queries, -1)
    grouped = row.reshape(*row.shape[:axis], shared, queries // shared, *row.shape[axis + 1 :])
    first = grouped.take([0], axis + 1)
    narrow = first.reshape(row.shape[0], shared, 1, -1) if layout.ndim == 4 else first.reshape(row.shape[0], 1, -1)
    rest = layout[:, :, :1] if layout.ndim == 4 else layout[:, :1]
    return [[Equal(layout, rest), Equal(grouped, first), Join(values, narrow)]]


def _heads(node: ir.Node) -> tuple[int, int] | None:
    """Heads of the queries and of the values; None where they are unknown, or a cache is involved."""
    values, result = node.inputs[_VALUES], node.outputs[0]
    cached = any(i < len(node.inputs) and node.inputs[i] is not None for i in _CACHE)
    if cached or len(node.outputs) > 1 or values is None or values.shape is None or result.shape is None:
        return None
    if rank(values) == 4:
        queries, shared = result.shape[1], values.shape[1]
        return (queries, shared) if isinstance(queries, int) and isinstance(shared, int) else None
    queries, shared = (node.attributes.get_int(f"{which}_num_heads", 0) for which in ("q", "kv"))
    return (queries, shared) if queries and shared else None


ATTENTION = {"Attention": Rules(_read, _written)}
