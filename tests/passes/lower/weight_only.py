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
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.plan import Form
from qcompile.compiler.printer import print_model
from qcompile.compiler.specs import Granularity, PerBlock, PerChannel, QuantSpec
from qcompile.compiler.targets.table import Lowering, Target
from qcompile.compiler.units import candidates, unit_reading_float
from qcompile.passes.lower.lower_qdq import LowerQdq
from qcompile.passes.quantize.round_to_nearest import RoundToNearest
from tests.golden import assert_golden
from tests.passes.harness import context, model_of
from tests.passes.int8 import Lowered, int8
from tests.sweep.harness import PREPARE

Array = np.ndarray[Any, Any]


class Place(Pass):
    """Operators of some types, in blocks along what they sum over; `block` None is one scale for each channel."""

    name: ClassVar[str] = "place"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT})

    spec: Any
    block: int | None
    form: Form
    lowerings: Mapping[str, Lowering]

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        for found in candidates(model.graph, context.target):
            if found.row.weight is None or found.node.op_type not in self.lowerings:
                continue
            unit = unit_reading_float(found, self.form, context.target)
            assert found.row.weight_axis is not None
            channel = found.row.weight_axis(found.node)
            grain: Granularity = PerBlock(1 - channel, self.block) if self.block else PerChannel(channel)
            spec = replace(self.spec, granularity=grain)
            context.plan.units[unit.node] = replace(unit, weight_spec=spec, lowering=self.lowerings[found.node.op_type])
        return False


def placed(spec: QuantSpec, block: int | None, lowering: Lowering | Mapping[str, Lowering], form: Form) -> list[Pass]:
    """The passes before those that lower: `lowering` of all, or by operator type."""
    each = dict.fromkeys(("MatMul", "Gemm", "Gather"), lowering) if isinstance(lowering, Lowering) else lowering
    return [*PREPARE, Place(spec=spec, block=block, form=form, lowerings=each), RoundToNearest()]


def weight_only(
    text: str,
    weights: Mapping[str, Array],
    sample: Mapping[str, Array],
    spec: QuantSpec,
    block: int | None,
    *lowerings: Pass,
    lowering: Lowering | Mapping[str, Lowering],
    form: Form = Form.WEIGHTS,
    methods: Sequence[Pass] = (),
    after: Sequence[Pass] = (),
    target: Target | None = None,
) -> Lowered:
    """Compile with the weights rounded to nearest, changed by `methods`, written by `lowerings`; `after` comes last."""
    passes = [*placed(spec, block, lowering, form), *methods, *lowerings, LowerQdq(), *after]
    return int8(text, weights, [sample], passes=passes, target=target)


def check_golden(
    text: str, weights: Mapping[str, Array], spec: QuantSpec, block: int, lower: Pass, lowering: Lowering
) -> None:
    """The graph before and after `lower`, against its golden text."""
    texts: list[str] = []
    passes = [*placed(spec, block, lowering, Form.WEIGHTS), lower]
    model = model_of(text, dict(weights))
    run_pipeline(passes, model, context(), lambda _, now: texts.append(print_model(now, provenance=True)))
    before, after = texts[-2:]
    assert_golden(f"passes/{lower.name}", f"# before\n{before}\n# after\n{after}")


def restored(result: Lowered, weight: str = "w") -> Array:
    """The values that the planned codes of a weight stand for."""
    found = next(q for (name, _), q in result.plan.weights.items() if name == weight)
    return np.asarray(dequantize(found.codes, found.params))
