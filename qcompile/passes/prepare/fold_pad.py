"""Zero padding goes into the convolution or the pool that reads it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant, graphs, rank
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.provenance import stamp
from qcompile.passes.prepare.surgery import bypass, is_own, remove_unread


class FoldPad(Pass):
    """Fold a Pad by constant zeros, along the spatial axes only, into the following Conv or AveragePool.

    An AveragePool then counts its padding, which it must be free to do: it has none of its own yet,
    or counts it already, does not round its output size up, and pads less than its kernel's size.
    """

    name: ClassVar[str] = "fold-pad"
    phase: ClassVar[Phase] = Phase.PREPARE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.SHAPES})
    float_equivalent: ClassVar[bool] = True

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        modified = False
        for graph in list(graphs(model)):
            folded = [self._fold(node) for node in list(graph)]
            if any(folded):
                modified = True
                remove_unread(graph)
        return modified

    def _fold(self, node: ir.Node) -> bool:
        if node.op_type not in ("Conv", "AveragePool") or node.domain != "":
            return False
        source = node.inputs[0]
        pad = source.producer() if source is not None else None
        if source is None or pad is None or pad.inputs[0] is None or not is_own(source, node):
            return False
        added, own = _zeros(pad), _own_pads(node)
        if added is None or own is None:
            return False
        if node.op_type == "AveragePool":
            counts = node.attributes.get_int("count_include_pad", 0) == 1 or not any(own)
            kernel = [*node.attributes.get_ints("kernel_shape", ())] * 2
            fits = all(a + b < k for a, b, k in zip(own, added, kernel, strict=True))
            if not counts or not fits or node.attributes.get_int("ceil_mode", 0) == 1:
                return False
        if not bypass(pad, pad.inputs[0]):
            return False
        if node.op_type == "AveragePool":
            node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
        node.attributes.pop("auto_pad", None)
        node.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(own, added, strict=True)])
        stamp(node, self.name, [node, pad])
        return True


def _zeros(pad: ir.Node) -> list[int] | None:
    """The spatial part [begin..., end...] of a Pad by zeros of the spatial axes, else None."""
    if pad.op_type != "Pad" or pad.domain != "" or pad.attributes.get_string("mode", "constant") != "constant":
        return None
    dims = rank(pad.inputs[0])
    inputs = [*pad.inputs, None, None, None]
    amounts, filler = constant(inputs[1]), constant(inputs[2])
    if dims is None or dims < 3 or amounts is None:
        return None
    if inputs[2] is not None and (filler is None or filler.any()):
        return None
    axes = list(range(dims))
    if inputs[3] is not None:
        given = constant(inputs[3])
        if given is None:
            return None
        axes = [int(a) % dims for a in given]
    full = np.zeros((2, dims), np.int64)
    full[:, axes] = amounts.reshape(2, len(axes))
    if full[:, :2].any() or (full < 0).any():
        return None
    return [int(n) for n in full[:, 2:].reshape(-1)]


def _own_pads(node: ir.Node) -> list[int] | None:
    """The explicit padding of a convolution or pool; None where it depends on the input's size."""
    dims = rank(node.inputs[0])
    if dims is None or node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    return list(node.attributes.get_ints("pads", ())) or [0] * (2 * (dims - 2))
