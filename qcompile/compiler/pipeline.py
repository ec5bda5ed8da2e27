"""The pipeline: runs passes in order, pools their statistics, checks their promises, times them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import groupby

import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import drop_unread_initializers
from qcompile.compiler.passes import Fact, Pass, Phase, StatisticRequest
from qcompile.compiler.provenance import stamp_originals
from qcompile.compiler.report import PassRecord
from qcompile.compiler.verification.float_function import check_float_function
from qcompile.compiler.verification.validity import check_graph
from qcompile.errors import PassError, RecipeError

Observer = Callable[[Pass, ir.Model], None]
"""Called after each pass; for dumps and tests."""


def run_pipeline(
    passes: Sequence[Pass],
    model: ir.Model,
    context: CompileContext,
    observe: Observer | None = None,
    last: Pass | None = None,
) -> list[PassRecord]:
    """Run `passes` over `model` in place.

    Args:
        last: where to stop; the passes behind it are there to ask for statistics only.

    Returns:
        One record for each pass.

    Raises:
        RecipeError: a pass needs a fact that no earlier pass provides.
        PassError: a pass left an invalid graph or changed a float function it promised to keep.
    """
    records: list[PassRecord] = []
    facts: set[Fact] = set()
    stamp_originals(model)
    for (_, keeps_function), run_of_passes in groupby(passes, key=lambda p: (p.phase, p.float_equivalent)):
        together = list(run_of_passes)
        start, first = model.clone() if keeps_function else None, len(records)
        for current in together:
            missing = current.requires - facts
            if missing:
                raise RecipeError(
                    f"step {len(records) + 1}, pass '{current.name}' needs {', '.join(sorted(missing))}, "
                    "which no earlier step provides"
                )
            context.following = passes[len(records) + 1 :]
            if current.phase is Phase.ANALYZE:
                context.requests = pooled_requests(context.following, model, context)
            decided = current.phase is Phase.QUANTIZE or (current.phase is Phase.LOWER and context.edits)
            if decided and context.unquantized is None:
                context.unquantized = model.clone()
            records.append(_run_pass(current, model, context))
            if current.changes_function and records[-1].modified:
                context.edits.append(current.name)
            facts = (facts - current.invalidates) | current.provides
            if observe:
                observe(current, model)
            if current is last:
                return records
        if start is not None and any(r.modified for r in records[first:]):
            check_float_function(start, model, together, context)
    if context.edits and context.unquantized is None:
        context.unquantized = model.clone()
    return records


def _run_pass(current: Pass, model: ir.Model, context: CompileContext) -> PassRecord:
    before, start = _count(model), time.perf_counter()
    modified = current.run(model, context)
    seconds = time.perf_counter() - start
    if modified:
        stamp_made(model, current)
        if current.phase is Phase.LOWER:
            drop_unread_initializers(model)
        faults = check_graph(model)
        if faults:
            raise PassError(
                f"pass '{current.name}' left an invalid graph: {faults[0]}",
                hint="this is a defect of the pass; leave the pass out of the recipe and report it",
            )
    return PassRecord(
        name=current.name,
        phase=current.phase,
        seconds=seconds,
        modified=modified,
        nodes_before=before,
        nodes_after=_count(model),
    )


def pooled_requests(following: Sequence[Pass], model: ir.Model, context: CompileContext) -> list[StatisticRequest]:
    """What the passes up to the next one that invalidates statistics need, without repetition.

    Where that one measures, it runs quantized copies, and these need what the quantize phase needs.
    """
    wanted: dict[StatisticRequest, None] = {}
    stale = False
    for later in following:
        if not stale or later.phase is Phase.QUANTIZE:
            wanted.update(dict.fromkeys(later.statistics(model, context)))
        if Fact.STATISTICS in later.invalidates and not stale:
            stale = True
            if not later.measures:
                break
    return list(wanted)


def stamp_made(model: ir.Model, by: Pass) -> None:
    """Nodes that a library rewrite made without provenance get the pass's name, and as sources
    those of the nodes that feed them, so that no node of the artifact is of unknown origin."""
    from qcompile.compiler.provenance import PASS, SOURCE, sources

    for node in model.graph.all_nodes():
        if not node.name:
            node.name = f"{by.name}.{node.outputs[0].name if node.outputs else node.op_type}"
        if SOURCE in node.metadata_props or PASS in node.metadata_props:
            continue
        node.metadata_props[PASS] = by.name
        producers = [p for v in node.inputs if v is not None and (p := v.producer()) is not None]
        names = dict.fromkeys(s for p in producers for s in sources(p))
        if names:
            node.metadata_props[SOURCE] = "\n".join(names)


def _count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes())
