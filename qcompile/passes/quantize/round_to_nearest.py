"""Codes of the weights: round to nearest, one scale per output channel or per block.

    s_c = max |W_c| / 127,   q = clip(round(W / s_c), -127, 127),   z = 0.

Where a bias follows, its int32 code is b / (s_x * s_c); a channel of tiny weights and a large bias
would overflow it, so s_c is raised to |b| / (s_x * 2^30) there: also for targets with a float bias, since
ONNX Runtime's default options turn that bias into codes when a session opens the artifact. A channel of
zeros takes that s_c too, since its bias is all it has to say. Source: ONNX QuantizeLinear; integer bias as
in Jacob et al., "Quantization and Training of Neural Networks", 2018, section 2.4.

Errors: DataError for a weight whose scale fp16 cannot hold, where the format stores scales so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant
from qcompile.compiler.params import QuantParams, weight_range
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import QuantizedWeight, QuantPlan, Unit
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.targets.table import Row
from qcompile.compiler.units import planned
from qcompile.compiler.weight_params import weight_codes, weight_params
from qcompile.errors import DataError
from qcompile.runtime.ahead import ahead, cores

_LARGEST_BIAS_CODE = 2.0**30


class RoundToNearest(Pass):
    """Quantize the weights of every placed operation."""

    name: ClassVar[str] = "round-to-nearest"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        plan, progress = context.plan, context.progress
        wanted: list[tuple[tuple[str, str], Callable[[], QuantizedWeight]]] = []
        for node, unit, row in planned(model, context):
            if unit.weight is not None and unit.weight_spec is not None:
                wanted.append(((unit.weight, unit.node), partial(quantized_weight, node, unit, row, plan)))
            if unit.state_weight is not None and unit.state_spec is not None and row.state_weight is not None:
                codes = partial(_codes, node.inputs[row.state_weight], unit.state_spec)
                wanted.append(((unit.state_weight, unit.node), codes))
        progress.start("quantizing weights", len(wanted))
        made = ahead(lambda item: item[1](), wanted, cores())
        for (key, _), weight in zip(wanted, made, strict=True):
            plan.weights[key] = weight
            progress.advance()
        progress.finish()
        return False


def quantized_weight(node: ir.Node, unit: Unit, row: Row, plan: QuantPlan) -> QuantizedWeight:
    """The codes of the weight of `unit`, which has one and a spec for it, on the grid of its range."""
    assert unit.weight_spec is not None
    assert row.weight is not None
    try:
        return _codes(node.inputs[row.weight], unit.weight_spec, _least_scale(unit, node, row, plan))
    except DataError as error:
        raise DataError(error.what, where=f"weight '{unit.weight}' of '{unit.node}'", hint=error.hint) from None


def _codes(value: ir.Value | None, spec: QuantSpec, least: npt.NDArray[np.float32] | None = None) -> QuantizedWeight:
    """Codes on the grid of the range, with scales of `least` and more."""
    weight = constant(value)
    assert weight is not None
    params = weight_params(weight, spec)
    if least is not None and least.any():
        params = _raised(weight, params, least)
    return QuantizedWeight(params, weight_codes(weight, params))


def _raised(weight: npt.NDArray[Any], params: QuantParams, least: npt.NDArray[np.float32]) -> QuantParams:
    low, high = weight_range(weight, params.spec)
    if params.scale.ndim == 0:
        least = least.max(initial=0)
    silent = (low == 0) & (high == 0) & (least > 0)
    return replace(params, scale=np.where(silent, least, np.maximum(params.scale, least)))


def _least_scale(unit: Unit, node: ir.Node, row: Row, plan: QuantPlan) -> npt.NDArray[np.float32]:
    """|b| / (s_x * 2^30), shape [C] or [1]: below it the bias code overflows; 0 without a bias."""
    bias = constant(node.inputs[row.bias]) if row.bias is not None and len(node.inputs) > row.bias else None
    activation = unit.inputs[row.activations[0]] if row.activations else None
    if bias is None or activation is None:
        return np.zeros(1, np.float32)
    x = float(plan.tensors[activation].scale)
    least = np.abs(bias.reshape(-1).astype(np.float64)) / (x * _LARGEST_BIAS_CODE)
    return np.where(least > 0, np.maximum(least, np.finfo(np.float32).tiny), 0).astype(np.float32)
