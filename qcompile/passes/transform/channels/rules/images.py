"""Operators on images: along the channels each works alone, the other axes keep their size."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import constant
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.prepare.untie import set_constant
from qcompile.passes.transform.channels.flow import Axes, Flow, Kept, Rule


def _pool(node: ir.Node, flow: Flow) -> list[Axes | None]:
    x = flow.axes(node, 0)
    if x is None or len(x) < 3:
        return flow.freeze_inputs(node)
    flow.freeze(*x[2:])
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):  # places, counted over all channels
        flow.freeze(x[1])
    result = flow.frozen(node.outputs[0])
    image = (*x[:2], *(result[2:] if result is not None else [None] * len(x[2:])))
    return [image] * len(node.outputs)


def _pad(node: ir.Node, flow: Flow) -> list[Axes | None]:
    pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    x = flow.axes(node, 0)
    if pads is None or x is None or pads.size != 2 * len(x):
        return flow.freeze_inputs(node)
    return _where(node, flow, (pads.reshape(2, -1) == 0).all(axis=0).tolist())


def _tile(node: ir.Node, flow: Flow) -> list[Axes | None]:
    repeats = constant(node.inputs[1])
    return _where(node, flow, [r == 1 for r in repeats]) if repeats is not None else flow.freeze_inputs(node)


def _resize(node: ir.Node, flow: Flow) -> list[Axes | None]:
    asked = constant(node.inputs[-1]) if node.inputs[-1] is not None else None
    given = node.attributes.get_ints("axes", ())
    x = flow.axes(node, 0)
    if x is not None and given:
        return _where(node, flow, [i not in {a % len(x) for a in given} for i in range(len(x))])
    if x is None or asked is None or len(asked) != len(x):
        return flow.freeze_inputs(node)
    if _has_sizes(node):
        return _where(node, flow, [a is not None and len(a) == size for a, size in zip(x, asked, strict=True)])
    return _where(node, flow, [scale == 1 for scale in asked])


def _has_sizes(node: ir.Node) -> bool:
    """Whether a Resize is told sizes in place of scales: those of channels, too."""
    return len(node.inputs) > _SIZES


_SIZES = 3


def _new_sizes(node: ir.Node, kept: Kept, names: Names) -> None:
    asked = constant(node.inputs[-1])
    if asked is None or not _has_sizes(node) or "axes" in node.attributes:
        return
    masks = kept.masks(node.outputs[0])
    sizes = [masks[i].sum() if i in masks else size for i, size in enumerate(asked)]
    set_constant(node, _SIZES, np.array(sizes, asked.dtype), names)


def _where(node: ir.Node, flow: Flow, untouched: list[bool]) -> list[Axes | None]:
    """Axes that stay as they are pass; the others keep their size."""
    x, result = flow.axes(node, 0), flow.frozen(node.outputs[0])
    if x is None or result is None or len(x) != len(untouched):
        return flow.freeze_inputs(node)
    flow.freeze(*(axis for axis, passes in zip(x, untouched, strict=True) if not passes))
    return [tuple(a if passes else b for a, b, passes in zip(x, result, untouched, strict=True))]


# DepthToSpace and SpaceToDepth


def _to_space(node: ir.Node, flow: Flow) -> list[Axes | None]:
    """A channel goes with the whole square of it."""
    x = flow.axes(node, 0)
    if x is None or x[1] is None:
        return flow.freeze_inputs(node)
    flow.freeze(*x[2:])
    square, turned = node.attributes["blocksize"].as_int() ** 2, node.attributes.get_string("mode", "DCR") == "CRD"
    squares = x[1].reshape(-1, square) if turned else x[1].reshape(square, -1).T
    flow.indices.unite(squares, squares[:, :1])
    return [(x[0], squares[:, 0], *_sizes(node, flow))]


def _to_depth(node: ir.Node, flow: Flow) -> list[Axes | None]:
    x = flow.axes(node, 0)
    if x is None or x[1] is None:
        return flow.freeze_inputs(node)
    flow.freeze(*x[2:])
    return [(x[0], np.tile(x[1], node.attributes["blocksize"].as_int() ** 2), *_sizes(node, flow))]


def _sizes(node: ir.Node, flow: Flow) -> Axes:
    result = flow.frozen(node.outputs[0])
    return result[2:] if result is not None else (None, None)


IMAGES = {
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"), Rule(_pool)),
    "Pad": Rule(_pad),
    "Tile": Rule(_tile),
    **dict.fromkeys(("Resize", "Upsample"), Rule(_resize, _new_sizes)),
    "DepthToSpace": Rule(_to_space),
    "SpaceToDepth": Rule(_to_depth),
}
