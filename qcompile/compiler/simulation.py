"""A quantized copy of a model, or of a block of one, made by the recipe's own passes.

    quantized_copy   quantize and lower phases of the recipe over a clone, from given statistics
    lowered_copy     lower phase alone, for a plan that exists
    placement        the plan that the recipe's placing passes make, before there are codes

So a pass that weighs one choice against another, or corrects what quantization does, runs the same
operators on the same codes as the artifact will. Passes that measure are left out of the copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import drop_unread_initializers
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import QuantPlan
from qcompile.compiler.statistics import StatisticsTable


def quantized_copy(model: ir.Model, context: CompileContext, statistics: StatisticsTable | None = None) -> ir.Model:
    """`model` as the rest of the recipe would place, quantize and lower it; `model` is not changed.

    Args:
        statistics: of the activations of `model`; left out, those of `context`.
    """
    copy, apart = model.clone(), _apart(context, context.plan.unplaced(), statistics)
    _run(copy, apart, context, lambda p: p.phase in (Phase.QUANTIZE, Phase.LOWER))
    drop_unread_initializers(copy)
    return copy


def lowered_copy(model: ir.Model, context: CompileContext, plan: QuantPlan | None = None) -> ir.Model:
    """`model` lowered by `plan` (left out: the plan of `context`); `model` is not changed.

    `model` may be a block: units of the plan whose nodes lie elsewhere are ignored. The lower passes may
    not change the plan they read.
    """
    copy, apart = model.clone(), _apart(context, plan or context.plan, None)
    _run(copy, apart, context, lambda p: p.phase is Phase.LOWER)
    drop_unread_initializers(copy)
    return copy


def placement(model: ir.Model, context: CompileContext) -> QuantPlan:
    """What the rest of the recipe would place, and on which grids; `model` and the plan of `context` stay."""
    apart = _apart(context, context.plan.unplaced(), None)
    _run(model, apart, context, lambda p: Fact.PLACEMENT in p.provides)
    return apart.plan


def _apart(context: CompileContext, plan: QuantPlan, statistics: StatisticsTable | None) -> CompileContext:
    """A context whose plan, codes and notices are its own."""
    return replace(context, plan=plan, codes=None, notices=[], statistics=statistics or context.statistics)


def _run(model: ir.Model, apart: CompileContext, context: CompileContext, wanted: Callable[[Pass], bool]) -> None:
    for current in context.following:
        if wanted(current) and not (current.measures or current.changes_interface):
            current.run(model, apart)
