"""Where a node or initializer comes from: kept in `metadata_props`, read by `qcompile diff`.

`qcompile.source` names the node of the user's model that a node stands for (several, separated by
newlines, when passes fused them); `qcompile.pass` names the pass that made or last rewrote it; `qcompile.channels` the
pass that scaled or reordered channels of its constants, which are then not those of the source, though the function is.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

SOURCE = "qcompile.source"
PASS = "qcompile.pass"
CHANNELS = "qcompile.channels"


def sources(item: ir.Node | ir.Value) -> list[str]:
    """Names of the source nodes of `item`, in order; empty when nothing is known."""
    text = item.metadata_props.get(SOURCE, "")
    return [s for s in text.split("\n") if s]


def stamp(item: ir.Node | ir.Value, made_by: str, of: Iterable[ir.Node | ir.Value]) -> None:
    """Record that pass `made_by` made `item` from the nodes `of`."""
    made_of = list(of)
    names = dict.fromkeys(s for o in made_of for s in sources(o))
    if names:
        item.metadata_props[SOURCE] = "\n".join(names)
    for changed_by in filter(None, map(channels_by, made_of)):
        item.metadata_props[CHANNELS] = changed_by
    item.metadata_props[PASS] = made_by


def stamp_channels(item: ir.Node, made_by: str, of: Iterable[ir.Node | ir.Value]) -> None:
    """The same, where `made_by` scaled or reordered channels of the node's constants."""
    stamp(item, made_by, of)
    item.metadata_props[CHANNELS] = made_by


def channels_by(item: ir.Node | ir.Value) -> str:
    """The pass that scaled or reordered channels of its constants; empty where none did."""
    return item.metadata_props.get(CHANNELS, "")


def stamp_originals(model: ir.Model) -> None:
    """Every node of a freshly loaded model is its own source; nodes without a name get one."""
    for i, node in enumerate(model.graph.all_nodes()):
        if not node.name:
            node.name = f"{node.op_type}_{i}"
        node.metadata_props.setdefault(SOURCE, node.name)
