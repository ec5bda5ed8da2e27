"""Bias compensation: take back the mean error that quantization adds to each output channel.

    b~ = E[W x + b] - E[W~ x~]      for each channel, layer by layer in the order of the graph

x: the float model's input of the layer; x~: what the quantized layers before it, already compensated, give;
W~: the quantized weight. Means over samples and positions, before the activation. Then the mean error of
every compensated layer is 0, up to half a code of an int32 bias, which lowering makes of the float one. A
layer without a bias gets one. Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", 2019, appendix D (empirical bias correction).

Few samples can mislead: every fourth is set apart, and a block that becomes worse on those is left as it was.
Errors: DataError without samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from array_api_compat import array_namespace
from pydantic import Field

from qcompile.compiler.block_walker import BlockWalker, Visit, product_of
from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.graph import nodes
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.relative_error import relative_error
from qcompile.errors import DataError
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.quantize.unit_bias import UnitBias, bias_of
from qcompile.runtime.device import fetch

_APART = 4
"""One sample in so many is set apart."""


class CompensateBias(Pass):
    """Correct the biases for the mean error that quantization makes."""

    name: ClassVar[str] = "compensate-bias"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    measures: ClassVar[bool] = True

    samples: int = Field(default=64, ge=1, description="calibration samples to measure on, at most")

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        source = context.calibration
        if not source:
            raise DataError(
                "no calibration samples",
                hint="give representative inputs with --calib, or take compensate-bias out of the recipe",
            )
        count = min(len(source), self.samples)
        few = count - count // _APART
        blocks = undone = 0
        for visit in BlockWalker(model, context, _in_order(source, count), method=self):
            work = _Block(visit, model, context, few, self.name)
            if work.biases:
                found = visit.once(work.compensate)
                work.write(found)
                blocks += 1
                undone += not found
        if undone:
            context.notice(f"bias compensation was undone in {undone} of {blocks} blocks: it made other samples worse")
        return undone < blocks


def _in_order(source: Iterable[Sample], count: int) -> Iterator[Sample]:
    """The first `count` samples, those that are set apart at the end."""
    for apart in (False, True):
        yield from (s for i, s in enumerate(islice(source, count)) if (i % _APART == _APART - 1) is apart)


class _Block:
    """The compensation of one block.

    Attributes:
        few: how many samples come before those that are set apart.
        biases: of the units that can have one, by node.
    """

    def __init__(self, visit: Visit, model: ir.Model, context: CompileContext, few: int, made_by: str) -> None:
        self.visit, self.model, self.few = visit, model, few
        by_name, names = {str(n.name): n for n in nodes(model)}, Names(model)
        found = {
            unit.node: bias_of(by_name[unit.node], unit, names, context, made_by)
            for wave in visit.waves()
            for unit in wave
        }
        self.biases: dict[str, UnitBias] = {name: bias for name, bias in found.items() if bias is not None}
        self.waves = [[u.node for u in wave if u.node in self.biases] for wave in visit.waves()]

    def compensate(self) -> dict[str, npt.NDArray[np.float32]]:
        """The new biases by node, already written; none where they do not help, with the old ones restored."""
        before, states = self.error(), {name: bias.state() for name, bias in self.biases.items()}
        for wave in self.waves:
            for name in wave:
                self.biases[name].write(np.zeros(self.biases[name].channels, np.float32))
            for name, error in zip(wave, self.mean_errors(wave), strict=True):
                self.biases[name].write(-error.astype(np.float32))
        if self.error() <= before:
            return {name: bias.read() for name, bias in self.biases.items()}
        for name, state in states.items():
            self.biases[name].restore(state)
        return {}

    def write(self, found: Mapping[str, npt.NDArray[Any]]) -> None:
        for name, array in found.items():
            self.biases[name].write(array)

    def mean_errors(self, wave: Sequence[str]) -> list[npt.NDArray[np.float64]]:
        """E[W~ x~ + b~] - E[W x + b] of each channel, for units that do not read each other."""
        biases = [self.biases[name] for name in wave]
        products = [product_of(bias.unit, self.model) for bias in biases]
        total, count = [np.zeros(bias.channels) for bias in biases], [0.0] * len(wave)
        pairs = zip(self.visit.products([b.unit for b in biases]), self.visit.float_values(products), strict=True)
        for given, exact in islice(pairs, self.few):
            for i, (name, bias) in enumerate(zip(products, biases, strict=True)):
                xp = array_namespace(given[name])
                error = xp.moveaxis(xp.astype(given[name], xp.float64) - exact[name], bias.axis, -1)
                rows = error.reshape((-1, bias.channels))
                total[i] += fetch(rows.sum(axis=0))
                count[i] += len(rows)
        return [t / max(c, 1) for t, c in zip(total, count, strict=True)]

    def error(self) -> float:
        """Of what leaves the block, on the samples set apart; 0 where there are none."""
        visit = self.visit
        names = [str(v.name) for v in visit.model.graph.outputs if v.dtype is None or v.dtype.is_floating_point()]
        given = visit.run(visit.lowered(), islice(visit.inputs, self.few, None))
        return relative_error(islice(visit.float_outputs, self.few, None), given, names)
