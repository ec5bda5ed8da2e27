"""What a channel always has goes from its layer's bias into the next layer's.

    c = max(0, m - 3 s),   b1 - c,   b2 + W2 c         m, s: mean and deviation of the layer's output

Where a value stays above c, relu(v) = relu(v - c) + c, so the function stays and the range behind the Relu
shrinks by c. For normal values 0.13 % lie below; they change by 0.0004 s on average: that is why this pass
does not promise an unchanged float function.
m and s are what BatchNormalization knew (`fold-batch-norm`). The next layer may have no padded border, where
zeros stand for what would be c. Source: Nagel et al. 2019 (arXiv:1906.04721), section 4.1.2.

Errors: none of its own.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant, graphs, name_of
from qcompile.compiler.moments import clip_bounds, through_layer
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.provenance import stamp
from qcompile.passes.prepare.surgery import Names, is_own, sole_reader
from qcompile.passes.prepare.untie import set_constant

Vector = npt.NDArray[np.float64]

_DEVIATIONS = 3.0


class AbsorbHighBias(Pass):
    """Move the part of a bias that no sample undercuts through the Relu into the next bias."""

    name: ClassVar[str] = "absorb-high-bias"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        names, channels = Names(model), 0
        for graph in graphs(model):
            for node in graph:
                channels += self._absorb(node, names, context)
        if channels:
            context.notice(f"high biases of {channels} channels were absorbed by the layers behind them")
        return channels > 0

    def _absorb(self, relu: ir.Node, names: Names, context: CompileContext) -> int:
        """How many channels in front of `relu` gave something away."""
        value = relu.inputs[0] if clip_bounds(relu) == (0.0, np.inf) else None
        first = value.producer() if value is not None else None
        second = sole_reader(relu.outputs[0])
        if value is None or first is None or second is None or not is_own(value, relu):
            return 0
        moments, bias = context.moments.get(name_of(value)), _bias(first)
        if moments is None or moments.deviation is None or bias is None or second.graph is not relu.graph:
            return 0
        shift = np.maximum(moments.mean - _DEVIATIONS * moments.deviation, 0.0)
        added = _through(second, relu.outputs[0], shift)
        after = _bias(second)
        if not shift.any() or added is None or after is None:
            return 0
        set_constant(first, 2, (bias - shift).astype(np.float32), names, "bias")
        set_constant(second, 2, (after + added).astype(np.float32), names, "bias")
        for node in (first, second):
            stamp(node, self.name, [node])
        context.moments.pop(name_of(value))
        for lowered in (value, relu.outputs[0]):
            lowered.name = names.fresh(f"{lowered.name}_absorbed")
        context.moments[name_of(value)] = moments.affine(1.0, -shift)
        return int(np.count_nonzero(shift))


def _bias(layer: ir.Node) -> Vector | None:
    """The constant float32 bias of a Conv or Gemm by output channel, zeros where there is none; None elsewhere."""
    weight = constant(layer.inputs[1]) if layer.op_type in ("Conv", "Gemm") and layer.domain == "" else None
    if weight is None or weight.dtype != np.float32 or layer.attributes.get_float("beta", 1.0) != 1.0:
        return None
    columns = layer.op_type == "Gemm" and not layer.attributes.get_int("transB", 0)
    channels = weight.shape[1 if columns else 0]
    given = layer.inputs[2] if len(layer.inputs) > 2 else None
    if given is None:
        return np.zeros(channels)
    array = constant(given)
    return None if array is None else np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,))


def _through(layer: ir.Node, source: ir.Value, shift: Vector) -> Vector | None:
    """What `layer` makes of a `source` that is `shift` everywhere; None where that depends on the place."""
    weight = constant(layer.inputs[1]) if len(layer.inputs) > 1 else None
    if weight is None or layer.inputs[0] is not source or layer.op_type not in ("Conv", "Gemm"):
        return None
    padded = any(layer.attributes.get_ints("pads", ()) or ())
    automatic = layer.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if padded or automatic or layer.attributes.get_int("transA", 0) != 0:
        return None
    return through_layer(layer, weight, shift)
