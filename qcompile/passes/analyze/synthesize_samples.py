"""Make calibration samples up from what the model itself knows, where the user gave none.

    BatchNormalization folded in  inputs whose activations have its means and deviations   (synthesis/distilled.py)
    reads tokens                  sequences the model writes itself, or rows of its table  (synthesis/tokens.py)
    moments, but no torch         no samples: ranges mean +- 6 deviations                  (synthesis/estimated.py)
    none of these                 no samples: layers that quantize their inputs as they run become int8, others stay

The report names the way that was taken. Samples that a user gives are left as they are.

Errors: none of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.inputs import ModelInput, made_up, model_inputs, table_rows
from qcompile.compiler.moments import Moments
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.errors import QCompileError
from qcompile.passes.analyze.synthesis.distilled import Distillation
from qcompile.passes.analyze.synthesis.estimated import estimated
from qcompile.passes.analyze.synthesis.tokens import TokenModel, sequences
from qcompile.runtime.torch_graph import TorchGraph

_HELD_OUT = 8

_LEAST_KNOWN = 0.5
"""Of the convolutions must have had a BatchNormalization behind them: less does not pin the inputs down."""


class SynthesizeSamples(Pass):
    """Calibration without calibration data: samples from the model's own memory of its training data."""

    name: ClassVar[str] = "synthesize-samples"
    phase: ClassVar[Phase] = Phase.ANALYZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.SAMPLES})

    images: int = Field(default=16, ge=1, description="inputs to distil from BatchNormalization")
    iterations: int = Field(default=150, ge=0, description="steps of the distillation")
    rate: float = Field(default=0.5, gt=0, description="step size of the distillation")
    token_samples: int = Field(default=32, ge=1, description="token sequences to make")
    tokens: int = Field(default=64, ge=2, description="length of the longest token sequence")

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        if context.calibration is not None:
            return False
        inputs = model_inputs(model)
        made = self._distilled(model, inputs, context) or self._tokens(model, inputs, context)
        if made is not None:
            context.calibration, context.held_out = made, made.samples[:: -(-len(made.samples) // _HELD_OUT)]
            context.notice(
                f"no calibration data: {made.description} stand in for it. Accuracy on real data was not seen by "
                "anything in this report; give real samples with --calib where there are any"
            )
            return False
        context.without_samples, context.statistics = True, estimated(model, context.moments)
        how = (
            "ranges of activations were estimated from BatchNormalization, for the layers that it follows"
            if context.statistics.samples
            else "no range of any activation is known, so only layers that quantize their inputs as they run are int8"
        )
        context.notice(f"no calibration data, and none could be made up: {how}; give real samples with --calib")
        return False

    def _distilled(self, model: ir.Model, inputs: Sequence[ModelInput], context: CompileContext) -> MadeSamples | None:
        written = {v.name for node in model.graph for v in node.outputs}
        moments = {n: m for n, m in context.moments.items() if n in written and m.deviation is not None}
        layers = sum(node.op_type in ("Conv", "ConvTranspose") for node in model.graph)
        if not moments or len(moments) < _LEAST_KNOWN * layers:
            return None
        try:
            return self._search(TorchGraph(model), moments, inputs, table_rows(model), context)
        except QCompileError as error:
            context.notice(f"no inputs were distilled from BatchNormalization: {error}")
            return None

    def _search(
        self,
        graph: TorchGraph,
        moments: dict[str, Moments],
        inputs: Sequence[ModelInput],
        rows: dict[str, int],
        context: CompileContext,
    ) -> MadeSamples:
        random = np.random.default_rng(context.seed)
        free = all(i.shape is None or not isinstance(i.shape[0], int) for i in inputs)
        batches = [made_up(inputs, random, rows, batch=self.images if free else 1)]
        batches += [made_up(inputs, random, rows) for _ in range(0 if free else self.images - 1)]
        search = Distillation(graph, moments)
        context.progress.start("Distilling samples from BatchNormalization", len(batches) * self.iterations)
        found: list[Sample] = []
        for batch in batches:
            made = search.run(batch, self.iterations, self.rate, context.progress)
            found += [{k: v[[i]] for k, v in made.items()} for i in range(self.images)] if free else [made]
        context.progress.finish()
        before, after = search.losses
        return MadeSamples(
            f"{len(found)} inputs distilled from BatchNormalization (loss {before:.3g} of noise, {after:.3g} of these)",
            found,
        )

    def _tokens(self, model: ir.Model, inputs: Sequence[ModelInput], context: CompileContext) -> MadeSamples | None:
        known = TokenModel.of(model, inputs)
        if known is None:
            return None
        lengths = np.linspace(max(self.tokens // 4, 2), self.tokens, self.token_samples).astype(int).tolist()
        return MadeSamples(f"{len(lengths)} {known.title}", sequences(model, known, inputs, lengths, context))


@dataclass(frozen=True, eq=False)
class MadeSamples:
    """Samples in memory, as a source of calibration data."""

    description: str
    samples: list[Sample]
    synthetic: bool = True

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def digest(self) -> str:
        digest = hashlib.sha256()
        for sample in self.samples:
            for name in sorted(sample):
                digest.update(name.encode() + np.ascontiguousarray(sample[name]).tobytes())
        return digest.hexdigest()
