"""A Clip from zero that hardly ever reaches its upper bound becomes a Relu.

    Clip(x, 0, b) -> Relu(x)     where  m_c + `deviations` * s_c <= b  in every channel c

m and s are what BatchNormalization knew of x (`fold-batch-norm`). A Clip with an upper bound does not pass a
scale, so it keeps `equalize-layers` and `absorb-high-bias` from working; a Relu does. The float function
changes where a value would have been clipped: the notice says for how many values that is to be expected, and
by how much the model's outputs differ on the samples at hand. Source: Nagel et al. 2019 (arXiv:1906.04721),
section 5.1.1, where all ReLU6 are replaced.

Errors: none of its own.
"""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import graphs, name_of
from qcompile.compiler.moments import Moments, clip_bounds
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.provenance import stamp
from qcompile.compiler.serialization import runnable
from qcompile.passes.prepare.surgery import bypass, remove_unread
from qcompile.runtime.calibration import run_samples

_SAMPLES = 4
"""On so many the outputs are compared."""


class RelaxClip(Pass):
    """Replace ReLU6 by Relu where its upper bound is out of reach."""

    name: ClassVar[str] = "relax-clip"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})

    deviations: float = Field(
        default=4.0,
        ge=0,
        description="how many standard deviations above its mean every channel must stay below the bound",
    )

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        found, beyond = [], 0.0
        clips = [n for n in model.graph.all_nodes() if n.op_type == "Clip" and n.domain == ""]
        for clip in clips:
            low, high = clip_bounds(clip) or (-math.inf, math.inf)
            moments = context.moments.get(name_of(clip.inputs[0])) if clip.inputs[0] is not None else None
            if low != 0 or math.isinf(high) or moments is None or moments.deviation is None:
                continue
            if (moments.mean + self.deviations * moments.deviation <= high).all():
                found.append(clip)
                beyond = max(beyond, _beyond(moments, high))
        if not found:
            return False
        before = model.clone()
        for clip in found:
            self._relax(clip)
        for graph in graphs(model):
            remove_unread(graph)
        context.notice(
            f"{len(found)} of {len(clips)} Clips became Relu; of the values of one at most {beyond:.2g} "
            f"are expected beyond its bound{_compared(before, model, context)}"
        )
        return True

    def _relax(self, clip: ir.Node) -> None:
        relu = ir.node("Relu", [clip.inputs[0]], name=clip.name)
        relu.outputs[0].type, relu.outputs[0].shape = clip.outputs[0].type, clip.outputs[0].shape
        stamp(relu, self.name, [clip])
        assert isinstance(clip.graph, ir.Graph)
        clip.graph.insert_before(clip, relu)
        bypass(clip, relu.outputs[0], take_name=True)


def _beyond(moments: Moments, high: float) -> float:
    """The share of values that lie above `high`."""
    assert moments.deviation is not None
    steps = (high - moments.mean) / np.maximum(moments.deviation, 1e-12)
    return float(np.mean([0.5 * math.erfc(d / math.sqrt(2)) for d in steps]))


def _compared(before: ir.Model, after: ir.Model, context: CompileContext) -> str:
    """How far the outputs of the two differ on the first samples, as the end of a sentence."""
    samples = list(itertools.islice(iter(context.calibration or ()), _SAMPLES))
    if not samples:
        return ", which no sample was there to confirm"
    noise = power = 0.0
    with runnable(before) as first, runnable(after) as second:
        runs = (run_samples(file, samples, context.float_providers) for file in (first, second))
        for expected, got in zip(*runs, strict=True):
            for a, b in zip(expected, got, strict=True):
                if np.issubdtype(a.dtype, np.floating):
                    power += float(np.square(a, dtype=np.float64).sum())
                    noise += float(np.square(a.astype(np.float64) - b).sum())
    if not noise:
        return f"; the outputs of {len(samples)} samples are the same"
    return f"; the outputs of {len(samples)} samples differ by {10 * math.log10(power / noise):.0f} dB"
