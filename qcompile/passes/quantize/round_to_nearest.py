"""Codes of the weights: round to nearest, one scale per output channel.

    s_c = max |W_c| / 127,   q = clip(round(W / s_c), -127, 127),   z = 0.

Where a bias follows, its int32 code is b / (s_x * s_c); a channel of tiny weights and a large bias
would overflow it, so s_c is raised to |b| / (s_x * 2^30) there: also for targets with a float bias, since
ONNX Runtime's default options turn that bias into codes when a session opens the artifact. Source: ONNX QuantizeLinear;
integer bias as in Jacob et al., "Quantization and Training of Neural Networks", 2018, section 2.4.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant, nodes
from qcompile.compiler.params import QuantParams, params_from_range, quantize, weight_range
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import QuantizedWeight, Unit
from qcompile.compiler.specs import PerChannel
from qcompile.compiler.targets.table import Row

_LARGEST_BIAS_CODE = 2.0**30


class RoundToNearest(Pass):
    """Quantize the weights of every placed operation."""

    name: ClassVar[str] = "round-to-nearest"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        for node in nodes(model):
            unit, row = context.plan.units.get(str(node.name)), context.target.row(node)
            if unit is None or row is None or row.weight is None or row.weight_axis is None:
                continue
            weight = constant(node.inputs[row.weight])
            assert weight is not None
            assert unit.weight is not None
            spec = replace(context.target.weight, granularity=PerChannel(row.weight_axis(node)))
            params = params_from_range(spec, *weight_range(weight, spec))
            params = _raised_for_bias(params, unit, node, row, context)
            context.plan.weights[unit.weight, unit.node] = QuantizedWeight(params, quantize(weight, params))
        return False


def _raised_for_bias(params: QuantParams, unit: Unit, node: ir.Node, row: Row, context: CompileContext) -> QuantParams:
    if row.bias is None or len(node.inputs) <= row.bias:
        return params
    bias = constant(node.inputs[row.bias])
    activation = unit.inputs[row.activations[0]]
    if bias is None or activation is None:
        return params
    x = float(context.plan.tensors[activation].scale)
    least: npt.NDArray[np.float32] = (np.abs(bias.reshape(-1)) / (x * _LARGEST_BIAS_CODE)).astype(np.float32)
    return replace(params, scale=np.maximum(params.scale, least))
