"""Weights alone as codes: small linear layers, planned by hand and lowered by the passes under test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.params import dequantize
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import Form
from qcompile.compiler.specs import Granularity, PerBlock, PerChannel, QuantSpec
from qcompile.compiler.targets.table import Lowering, Target
from qcompile.compiler.units import candidates, unit_reading_float
from qcompile.passes.lower.lower_qdq import LowerQdq
from qcompile.passes.quantize.round_to_nearest import RoundToNearest
from tests.passes.int8 import Lowered, int8
from tests.sweep.harness import PREPARE

Array = np.ndarray[Any, Any]


class Place(Pass):
    """Every operator with a weight, in blocks along what it sums over; `block` None is one scale for each channel."""

    name: ClassVar[str] = "place"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT})

    spec: Any
    block: int | None
    form: Form
    lowering: Lowering

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        for found in candidates(model.graph, context.target):
            if found.row.weight is None:
                continue
            unit = unit_reading_float(found, self.form, context.target)
            channel = 0 if found.row.weight_axis is None else found.row.weight_axis(found.node)
            grain: Granularity = PerBlock(1 - channel, self.block) if self.block else PerChannel(channel)
            spec = replace(self.spec, granularity=grain)
            context.plan.units[unit.node] = replace(unit, weight_spec=spec, lowering=self.lowering)
        return False


def weight_only(
    text: str,
    weights: Mapping[str, Array],
    x: Array,
    spec: QuantSpec,
    block: int | None,
    *lowerings: Pass,
    lowering: Lowering,
    form: Form = Form.WEIGHTS,
    methods: Sequence[Pass] = (),
    target: Target | None = None,
) -> Lowered:
    """Compile with the weights rounded to nearest, then changed by `methods`, then written by `lowerings`."""
    placed = Place(spec=spec, block=block, form=form, lowering=lowering)
    passes = [*PREPARE, placed, RoundToNearest(), *methods, *lowerings, LowerQdq()]
    return int8(text, weights, [{"x": x}], passes=passes, target=target)


def restored(result: Lowered, weight: str = "w") -> Array:
    """The values that the planned codes of a weight stand for."""
    found = next(q for (name, _), q in result.plan.weights.items() if name == weight)
    return np.asarray(dequantize(found.codes, found.params))
