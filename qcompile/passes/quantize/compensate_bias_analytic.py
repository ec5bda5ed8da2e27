"""Analytic bias compensation: the mean error of the rounded weights is taken back, without running anything.

    b  <-  b - sum_i dW_i E[x_i],      dW = W~ - W,   x: what the layer reads, channel by channel

E[x] is what BatchNormalization knew, carried through Relu, Clip, sums and averages (compiler/moments.py):
after a Relu  E[x] = s p(-m/s) + m P(m/s).  Where nothing is recorded, the mean of each channel over the
calibration samples. Then the mean of every output is that of the float layer, where the assumption holds;
padded borders are counted as if they went on. The bias stays float here; lowering makes its int32 codes.
Source: Nagel et al. 2019 (arXiv:1906.04721), section 4.2. `compensate-bias` measures instead.

Errors: none of its own; a layer of whose input nothing is known is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant, graphs, name_of
from qcompile.compiler.moments import Moments, propagated, through_layer
from qcompile.compiler.params import dequantize
from qcompile.compiler.passes import Fact, Pass, Phase, StatisticRequest
from qcompile.compiler.statistics import Channels
from qcompile.compiler.units import planned
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.quantize.unit_bias import bias_of

Vector = npt.NDArray[np.float64]

_AXES = {"Conv": 1, "Gemm": -1, "MatMul": -1}
"""The layers that are compensated, and where the channels of their input lie."""


class CompensateBiasAnalytic(Pass):
    """Correct the biases for what rounding the weights adds on average."""

    name: ClassVar[str] = "compensate-bias-analytic"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})

    def statistics(self, model: ir.Model, context: CompileContext) -> Sequence[StatisticRequest]:
        wanted = []
        for graph in graphs(model):
            known = propagated(graph, context.moments)
            for node in graph:
                axis, value = _AXES.get(node.op_type), node.inputs[0] if node.inputs else None
                if axis is None or value is None or constant(node.inputs[1]) is None or name_of(value) in known:
                    continue
                if value.shape is not None and isinstance(value.shape[axis], int):
                    wanted.append(StatisticRequest(name_of(value), Channels(axis)))
        return wanted

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        known = {graph: propagated(graph, context.moments) for graph in graphs(model)}
        names, changed, unknown = Names(model), 0, 0
        for node, unit, row in planned(model, context):
            codes = context.plan.weights.get((str(unit.weight), unit.node))
            if node.op_type not in _AXES or row.weight is None or codes is None:
                continue
            weight, bias = constant(node.inputs[row.weight]), bias_of(node, unit, names, context, self.name)
            assert isinstance(node.graph, ir.Graph)
            means = _means(node, known[node.graph], context)
            if weight is None or bias is None or means is None or len(means) != _inputs(node, weight):
                unknown += means is None
                continue
            error = dequantize(codes.codes, codes.params).astype(np.float64) - weight
            shift = through_layer(node, error, means)
            bias.write((bias.read() - shift).astype(np.float32))
            changed += 1
        if unknown:
            context.notice(f"biases of {unknown} layers were not compensated: the means of their inputs are not known")
        return changed > 0


def _means(node: ir.Node, known: Mapping[str, Moments], context: CompileContext) -> Vector | None:
    """E[x] of each channel that `node` reads."""
    value = node.inputs[0]
    if value is None:
        return None
    moments = known.get(name_of(value))
    if moments is not None:
        return moments.mean
    seen = context.statistics.channels_of(name_of(value), _AXES[node.op_type])
    return seen.mean if seen is not None else None


def _inputs(node: ir.Node, weight: npt.NDArray[np.generic]) -> int:
    """How many channels a layer with this weight reads."""
    if node.op_type == "Conv":
        return int(weight.shape[1]) * node.attributes.get_int("group", 1)
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
    return int(weight.shape[1 if transposed else 0])
