"""Per-channel scales and shifts go into the convolutions after them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import add_initializer, constant, graphs, is_constant
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.provenance import stamp, stamp_channels
from qcompile.passes.prepare.affine import Affine, Vector, affine_of
from qcompile.passes.prepare.surgery import Names, bypass, remove_unread, sole_reader
from qcompile.passes.prepare.untie import set_constant

_LARGEST_SHIFT = 100.0


class FoldAffineForward(Pass):
    """Fold x' = s * x + t, with constant s and t for each channel, into the Conv that alone reads x'.

    W' = s W along the input channels, b' = b + sum over the kernel of t W. A shift cannot pass a border
    that the Conv pads with zeros: there s x + t becomes x + t / s, and only s is folded.
    It serves what stands behind an activation, where `fold-batch-norm` cannot reach.

    Source: distributivity; the padded border as in Jacob et al. 2018 (arXiv:1712.05877), section 3.2.
    """

    name: ClassVar[str] = "fold-affine-forward"
    phase: ClassVar[Phase] = Phase.PREPARE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    float_equivalent: ClassVar[bool] = True

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        names = Names(model)
        modified = False
        for graph in list(graphs(model)):
            convs = [n for n in reversed(list(graph)) if n.op_type == "Conv" and n.domain == "" and _is_plain(n)]
            changed = [self._fold(conv, names) for conv in convs]
            if any(changed):
                modified = True
                remove_unread(graph)
        return modified

    def _fold(self, conv: ir.Node, names: Names) -> bool:
        """Fold every affine before `conv`; True if there was one."""
        folded = False
        while (affine_node := self._before(conv)) is not None:
            node, affine = affine_node
            if affine.shift.any() and _is_padded(conv):
                return self._past_shift(conv, node, affine, names) or folded
            if not bypass(node, affine.source):
                return folded
            self._scale(conv, affine.scale, names)
            if affine.shift.any():
                # t belongs to the weight before it was scaled
                _shift_bias(conv, affine.shift / affine.scale, names)
            stamp_channels(conv, self.name, [conv, node])
            folded = True
        return folded

    def _past_shift(self, conv: ir.Node, add: ir.Node, shift: Affine, names: Names) -> bool:
        """Mul -> Add -> padded Conv becomes Add(t / s) -> Conv with s in its weight."""
        mul = shift.source.producer()
        if (
            mul is None
            or mul.graph is not conv.graph
            or sole_reader(shift.source) is not add
            or not _is_one(shift.scale)
        ):
            return False
        scale = affine_of(mul, _dims(conv), _channels(conv))
        if scale is None or scale.shift.any() or not scale.scale.all():
            return False
        moved = shift.shift / scale.scale
        if np.abs(moved).max() > _LARGEST_SHIFT * max(np.abs(shift.shift).max(), 1.0):
            return False
        position = 0 if is_constant(add.inputs[0]) else 1
        old = constant(add.inputs[position])
        assert old is not None
        array = moved.astype(old.dtype).reshape(-1, *(1,) * (_dims(conv) - 2))
        if not bypass(mul, scale.source):
            return False
        assert isinstance(conv.graph, ir.Graph)
        value = add_initializer(conv.graph, names.fresh(f"{add.name}_shift"), array)
        add.replace_input_with(position, value)
        self._scale(conv, scale.scale, names)
        add.outputs[0].name = names.fresh(f"{add.outputs[0].name}_unscaled")
        stamp(add, self.name, [add, mul])
        stamp_channels(conv, self.name, [conv, mul])
        return True

    def _scale(self, conv: ir.Node, scale: Vector, names: Names) -> None:
        weight = constant(conv.inputs[1])
        assert weight is not None
        scaled = weight.astype(np.float64) * _along_inputs(conv, scale)
        set_constant(conv, 1, scaled.astype(weight.dtype), names)

    def _before(self, conv: ir.Node) -> tuple[ir.Node, Affine] | None:
        """The affine node that feeds `conv` alone, with a scale that can be divided by."""
        value = conv.inputs[0]
        node = value.producer() if value is not None else None
        if value is None or node is None or node.graph is not conv.graph or sole_reader(value) is not conv:
            return None
        affine = affine_of(node, _dims(conv), _channels(conv))
        return (node, affine) if affine is not None and affine.scale.all() else None


def _shift_bias(conv: ir.Node, shift: Vector, names: Names) -> None:
    weight = constant(conv.inputs[1])
    assert weight is not None
    added = (weight.astype(np.float64) * _along_inputs(conv, shift)).sum(axis=tuple(range(1, weight.ndim)))
    bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] is not None else np.zeros(len(weight))
    assert bias is not None
    set_constant(conv, 2, (bias + added).astype(weight.dtype), names, "bias")


def _is_plain(conv: ir.Node) -> bool:
    """Weight and bias are float constants."""
    weight = constant(conv.inputs[1])
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    return weight is not None and weight.dtype.kind == "f" and (bias is None or is_constant(bias))


def _is_padded(conv: ir.Node) -> bool:
    automatic = conv.attributes.get_string("auto_pad", "NOTSET")
    return automatic not in ("NOTSET", "VALID") or any(conv.attributes.get_ints("pads", ()))


def _is_one(scale: Vector) -> bool:
    return bool((scale == 1).all())


def _dims(conv: ir.Node) -> int:
    weight = constant(conv.inputs[1])
    assert weight is not None
    return int(weight.ndim)


def _channels(conv: ir.Node) -> int:
    """Input channels of the convolution, over all groups."""
    weight = constant(conv.inputs[1])
    assert weight is not None
    return int(weight.shape[1]) * conv.attributes.get_int("group", 1)


def _along_inputs(conv: ir.Node, vector: Vector) -> Vector:
    """A vector over input channels so that it multiplies the weight [O, C / groups, ...]."""
    weight = constant(conv.inputs[1])
    assert weight is not None
    group = conv.attributes.get_int("group", 1)
    rows = np.repeat(vector.reshape(group, -1), len(weight) // group, axis=0)
    return rows.reshape(len(weight), -1, *(1,) * (weight.ndim - 2))
