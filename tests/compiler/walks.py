"""Models that are ready to be walked: prepared, or planned up to the lower phase."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.passes import Pass, Phase
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.targets.table import Target
from tests.sweep.harness import RECIPE, Arrays, Samples, eager_target, session

QUANTIZED = [p for p in RECIPE if p.phase is not Phase.LOWER]
LOWER = [p for p in RECIPE if p.phase is Phase.LOWER]


def ready(
    model: onnx.ModelProto | ir.Model, samples: Sequence[Sample], passes: Sequence[Pass], target: Target | None = None
) -> tuple[ir.Model, CompileContext]:
    """The model after `passes`, by default for a CPU on which float is endlessly slow."""
    graph = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    context = CompileContext(
        target or eager_target(), Path("unused"), calibration=Samples(samples), held_out=[samples[0]]
    )
    run_pipeline([*passes, *LOWER][: len(passes)], graph, context)
    context.following = LOWER
    return graph, context


def whole(model: ir.Model, samples: Sequence[Sample]) -> list[dict[str, np.ndarray]]:  # type: ignore[type-arg]
    """Outputs of the whole model on every sample, as the walker's sessions compute them."""
    run = session(ir.to_proto(model).SerializeToString(), optimized=True)
    wanted = {i.name for i in run.get_inputs()}
    names = [o.name for o in run.get_outputs()]
    found: list[Arrays] = [run.run(names, {k: v for k, v in s.items() if k in wanted}) for s in samples]
    return [dict(zip(names, outputs, strict=True)) for outputs in found]
