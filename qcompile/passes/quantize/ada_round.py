"""AdaRound: each weight of a layer goes to the code below or above it, whichever serves the layer's output.

    min over codes q of E||f(s (q - z) x~ + b) - f(W x + b)||^2,   q in {floor(W/s + z), floor(W/s + z) + 1}

Scales s and zero points z are those of round-to-nearest. x~ is what the quantized layers before give, themselves
already rounded so; x and W x are of the float model; f is the Relu or Clip behind the layer. Layers are taken in
the order of the graph, convolutions as products over sampled positions (layer_rows.py), and the search is by
gradients (learned_rounding.py). A channel keeps its codes where the new ones are no better on the rows they
were learned from, and a layer does where they are worse on rows of other samples. For convolutional
nets; weights of few bits gain most. Source: Nagel et al., "Up or Down?", 2020.

Errors: QCompileError without torch, DataError without samples.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from array_api_compat import array_namespace
from pydantic import Field

from qcompile.compiler.block_walker import BlockWalker, Visit, product_of
from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant, name_of, nodes
from qcompile.compiler.layer_rows import LayerRows, as_read, in_layout, is_product, matrix
from qcompile.compiler.params import dequantize
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import QuantizedWeight, Unit
from qcompile.errors import DataError
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.quantize.learned_rounding import RoundingProblem, learn, polish
from qcompile.passes.quantize.unit_bias import bias_of
from qcompile.runtime.device import fetch
from qcompile.runtime.torch_graph import require_torch

Array = np.ndarray[Any, Any]

_ROWS_PER_WEIGHT = 16
_LEAST_ROWS, _MOST_ROWS = 512, 4096
"""Positions that a layer is learned from: so many for each weight of a channel, within these bounds."""

_APART = 4
"""The rows of one sample in so many judge instead of teaching."""


class AdaRound(Pass):
    """Learn the rounding of weights from the outputs of their layers."""

    name: ClassVar[str] = "ada-round"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    measures: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = True

    samples: int = Field(default=64, ge=1, description="calibration samples to learn from, at most")
    iterations: int = Field(
        default=500,
        ge=1,
        description="steps of the search in each layer; 500 take EfficientNet-Lite0 about three minutes on one core, "
        "twice as many lower a layer's error by a tenth",
    )

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        require_torch(f"the pass {self.name}")
        if not context.calibration:
            raise DataError(
                "no calibration samples",
                hint=f"give representative inputs with --calib, or take {self.name} out of the recipe",
            )
        by_name = {str(n.name): n for n in nodes(model)}
        for visit in BlockWalker(model, context, islice(context.calibration, self.samples), method=self):
            work = _Block(self, visit, model, context, by_name)
            if work.waves:
                work.write(visit.once(work.learn))
        return False


class _Block:
    """The layers of one block, in waves that do not read each other."""

    def __init__(
        self, options: AdaRound, visit: Visit, model: ir.Model, context: CompileContext, by_name: Mapping[str, ir.Node]
    ) -> None:
        self.options, self.visit, self.model, self.context = options, visit, model, context
        self.node = {unit.node: by_name[unit.node] for wave in visit.waves() for unit in wave}
        self.waves = [fit for wave in visit.waves() if (fit := [u for u in wave if self.fits(u)])]

    def fits(self, unit: Unit) -> bool:
        """Whether the unit is a product whose weights have integer codes."""
        params = self.context.plan.weights[str(unit.weight), unit.node].params
        return params.spec.format.is_integer and is_product(self.node[unit.node])

    def learn(self) -> dict[str, npt.NDArray[np.int16]]:
        """The new codes by node, already written into the plan."""
        found: dict[str, npt.NDArray[np.int16]] = {}
        for wave in self.waves:
            for unit, (rows, teaching) in zip(wave, self.rows(wave), strict=True):
                seed = zlib.crc32(unit.node.encode()) ^ self.context.seed
                codes = best(self.problem(unit, rows), teaching, self.options.iterations, seed)
                planned = self.context.plan.weights[str(unit.weight), unit.node].codes
                found[unit.node] = in_layout(self.node[unit.node], fetch(codes), planned).astype(np.int16)
            self.write({unit.node: found[unit.node] for unit in wave})
        return found

    def write(self, found: Mapping[str, npt.NDArray[Any]]) -> None:
        weights = self.context.plan.weights
        for unit in (u for wave in self.waves for u in wave if u.node in found):
            old = weights[str(unit.weight), unit.node]
            codes = found[unit.node].astype(old.codes.dtype)
            weights[str(unit.weight), unit.node] = QuantizedWeight(old.params, codes)

    def rows(self, wave: Sequence[Unit]) -> list[tuple[LayerRows, int]]:
        """For each unit rows of its input behind the quantized prefix with the float product, and how many of
        them teach: those come first."""
        names = [name_of(x) for u in wave if (x := self.node[u.node].inputs[0]) is not None]
        products = [product_of(unit, self.model) for unit in wave]
        teaching, judging = ([LayerRows(self.node[u.node], self.random(u, i)) for u in wave] for i in range(2))
        for i, (given, exact) in enumerate(
            zip(self.visit.values(names), self.visit.float_values(products), strict=True)
        ):
            for j, unit in enumerate(wave):
                rows = judging[j] if i % _APART == _APART - 1 else teaching[j]
                read = as_read(given[names[j]], self.context.plan.tensors.get(unit.inputs[0] or ""))
                rows.add(read, exact[products[j]], self.most(unit))
        counts = [sum(int(x.shape[1]) for x in rows.inputs) for rows in teaching]
        return [
            (replace(t, inputs=t.inputs + s.inputs, outputs=t.outputs + s.outputs), count)
            for t, s, count in zip(teaching, judging, counts, strict=True)
        ]

    def most(self, unit: Unit) -> int:
        """Rows to take of one sample."""
        weight = self.node[unit.node].inputs[1]
        assert weight is not None
        assert weight.shape is not None
        summed: int = matrix(self.node[unit.node], np.empty(weight.shape.numpy())).shape[2]
        return -(-min(max(_ROWS_PER_WEIGHT * summed, _LEAST_ROWS), _MOST_ROWS) // self.visit.count)

    def random(self, unit: Unit, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.context.seed, zlib.crc32(unit.node.encode()), stream])

    def problem(self, unit: Unit, rows: LayerRows) -> RoundingProblem:
        node, planned = self.node[unit.node], self.context.plan.weights[str(unit.weight), unit.node]
        weight, fmt = constant(node.inputs[1]), planned.params.spec.format
        assert weight is not None
        offset = dequantize(np.zeros_like(planned.codes, np.int32), planned.params)
        scale = dequantize(np.ones_like(planned.codes, np.int32), planned.params) - offset
        inputs, outputs = rows.stacked()
        bias = bias_of(node, unit, Names(self.model), self.context, self.options.name)
        put, start = self.context.device.put, np.zeros(tuple(outputs.shape[::2]), np.float32)
        return RoundingProblem(
            grid=put(matrix(node, (weight - offset) / scale)),
            scale=put(matrix(node, scale)),
            zero_point=put(matrix(node, np.rint(-offset / scale))),
            planned=put(matrix(node, planned.codes.astype(np.int32))),
            pruned=put(matrix(node, weight == 0)),
            lowest=-int(fmt.high) if planned.params.spec.symmetric and fmt.is_signed else int(fmt.low),
            highest=int(fmt.high),
            bias=put(bias.read().reshape(start.shape) if bias else start),
            clip=self.bounds(unit),
            inputs=inputs,
            outputs=outputs,
        )

    def bounds(self, unit: Unit) -> tuple[float, float]:
        """What the unit's activation clips to."""
        node = next((n for n in nodes(self.model) if n.name == unit.activation), None)
        if node is None:
            return -np.inf, np.inf
        if node.op_type == "Relu":
            return 0.0, np.inf
        low, high = (constant(v) for v in (*node.inputs[1:], None, None)[:2])
        return float(low) if low is not None else -np.inf, float(high) if high is not None else np.inf


def best(problem: RoundingProblem, teaching: int, iterations: int, seed: int) -> Any:
    """Learned codes where they are better than the planned ones: on the first `teaching` rows for each
    channel, on the other rows for the layer."""
    first = replace(problem, inputs=problem.inputs[:, :teaching], outputs=problem.outputs[:, :teaching])
    xp, planned = array_namespace(problem.grid), problem.planned
    codes = planned
    learned = learn(first, iterations, seed)
    for found in (learned, polish(first, learned)):
        better = first.errors(found) < first.errors(codes)
        codes = xp.where(better[:, :, None], found, codes)
    others = slice(teaching, None)
    if (
        problem.inputs.shape[1] > teaching
        and problem.errors(codes, others).sum() > problem.errors(planned, others).sum()
    ):
        return planned
    return codes
