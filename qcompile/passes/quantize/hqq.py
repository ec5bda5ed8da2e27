"""HQQ: zero points for which most weights are met well and a few may be missed, without data.

    min over z_b of sum_{k in b} |v - (q - z)|^p,   v = W / s,   q = clip(round(v + z), qmin, qmax),   p = 0.7

By half-quadratic splitting, a few rounds of two steps in closed form, beta rising:
    e = sign(r) max(|r| - |r|^(p - 1) / beta, 0),   r = v - (q - z)      what is left to the few
    z <- z - mean_b (r - e)
Errors are in units of the scale, so weights of any magnitude give the same codes. Each block keeps the best zero point
it saw, that of round-to-nearest included: the loss never rises. Scales are those of the plan.

W [N, K] in the model's layout, z_b [N, blocks]. Zero points lie between codes, which costs as many bits as a scale, and
which only MatMulNBits takes; all other layers keep theirs, and so do symmetric ones, those whose inputs are codes, and
a head whose codes a table reads too. Pruned ones keep theirs as well: 0 has a code only where z is a whole number.
Rounded to whole numbers they would be those of round-to-nearest again. Source: Badri & Shaji, "Half-Quadratic
Quantization of Large Machine Learning Models", 2023, there in units of the weights.

Errors: none of its own; a notice says how many layers stay as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from array_api_compat import array_namespace

from qcompile.compiler.context import CompileContext
from qcompile.compiler.formats import Scales
from qcompile.compiler.params import QuantParams, grid_of
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.specs import PerBlock
from qcompile.compiler.targets.table import Lowering
from qcompile.compiler.weight_params import pieces_of, sums
from qcompile.compiler.weight_pattern import is_pruned
from qcompile.passes.quantize.weight_grids import layers_that_read_float, requantize
from qcompile.runtime.device import fetch

Array = Any  # numpy.ndarray or torch.Tensor
Floats = npt.NDArray[np.floating[Any]]

_POWER = 0.7
_BETA, _RISE = 10.0, 1.01
_ROUNDS = 20
_SMALLEST = 1e-6
"""Errors below are none: their power would be infinite."""


class Hqq(Pass):
    """Choose the zero points of weights by half-quadratic quantization."""

    name: ClassVar[str] = "hqq"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        weights = context.plan.weights
        layers = layers_that_read_float(model, context)
        looked_up = {unit.tied for unit in context.plan.units.values()}
        open_to_it = [
            x
            for x in layers
            if x.lowering is Lowering.BLOCKS and x.unit.node not in looked_up and _is_asymmetric(weights[x.key].params)
        ]
        chosen = [x for x in open_to_it if not is_pruned(x.weight())]
        if len(open_to_it) < len(layers):
            context.notice(
                f"{self.name}: {len(layers) - len(open_to_it)} of {len(layers)} layers keep their zero points: theirs "
                "are whole numbers, or none (place-weights.symmetric: false gives MatMulNBits some)"
            )
        if len(chosen) < len(open_to_it):
            context.notice(
                f"{self.name}: {len(open_to_it) - len(chosen)} pruned layers keep their zero points: one between two "
                "codes has no code for the weights that are 0"
            )
        requantize(chosen, lambda _, weight, planned: solved(weight, planned), context)
        return False


def _is_asymmetric(params: QuantParams) -> bool:
    return params.spec.format.is_integer and not params.spec.symmetric


def solved(weight: Array, planned: QuantParams) -> QuantParams:
    """`planned` with the zero points of least loss."""
    zero = np.empty(planned.scale.shape, np.float32)
    parts = pieces_of(weight, planned)
    if not isinstance(planned.spec.granularity, PerBlock):
        parts = iter([(..., ..., planned)])
    for rows, scales, part in parts:
        zero[scales] = _zero_points(weight[rows], part)
    return replace(planned, zero_point=zero)


def _zero_points(weight: Array, planned: QuantParams) -> Floats:
    spec, xp = planned.spec, array_namespace(weight)
    stored = np.float16 if spec.stored_scales is Scales.FLOAT16 else np.float32
    count = fetch(sums(xp.ones_like(weight), spec))
    zero = best = planned.zero_point.astype(np.float32)
    least: Array = np.full(zero.shape, np.inf, np.float32)
    for beta in _BETA * _RISE ** np.arange(_ROUNDS):
        grid = grid_of(replace(planned, zero_point=zero), weight)
        missed = (weight - grid.values(grid.codes(weight, xp), xp)) / grid.scale
        far = abs(missed)
        power = xp.clip(far, _SMALLEST, None) ** (_POWER - 1)
        loss = fetch(sums(far * power, spec))
        best, least = np.where(loss < least, zero, best), np.minimum(loss, least)
        left = xp.sign(missed) * xp.clip(far - power / float(beta), 0, None)
        zero = (zero - fetch(sums(missed - left, spec)) / count).astype(stored).astype(np.float32)
    return best
