"""AutoRound: roundings and ranges of the weights of a block, learned together from what the block computes.

    W~ = s (clip(round(W / s + z + V), qmin, qmax) - z),   |V| <= 1/2,   V <- V - t sign(dL/dV)
    range of each block of weights: ends times a and b, learned alike;   t falls from 1/iterations to 0
    L = E ||f(x~; W~) - f(x; W)||^2 / ||f(x; W)||^2,  the error of the block's output, of each token alike

x~ is what the quantized blocks before give. Rounding passes gradients as if it were not there. The search starts
from the plan's codes and ranges, whoever made them; the block keeps them where the learned ones are no better
on samples that did not teach. Weights of 8 bits and more stay, since there is nothing to gain, and so do weights that
another node reads, which would be stored twice. Source: Cheng et al., "Optimize Weight Rounding via Signed Gradient
Descent", 2023 (arXiv:2309.05516).

Errors: QCompileError without torch, DataError without samples; a block that torch cannot run stays, and a notice
names its operators.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.block_walker import BlockWalker, Visit
from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant, nodes
from qcompile.compiler.params import QuantParams, dequantize
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import QuantizedWeight
from qcompile.compiler.relative_error import relative_error
from qcompile.errors import DataError, ModelError
from qcompile.passes.quantize.learned_grid import LearnedGrid
from qcompile.runtime.torch_graph import TorchGraph, require_torch

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Key = tuple[str, str]

_APART = 4
"""One sample in so many judges instead of teaching."""


class AutoRound(Pass):
    """Learn codes and ranges of the weights, block by block."""

    name: ClassVar[str] = "auto-round"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    measures: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = True

    samples: int = Field(default=64, ge=1, description="calibration samples to learn from, at most")
    iterations: int = Field(default=200, ge=1, description="steps of the search in each block")
    batch: int = Field(default=4, ge=1, description="samples of one step")

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        require_torch(f"the pass {self.name}")
        if not context.calibration:
            raise DataError(
                "no calibration samples",
                hint=f"give representative inputs with --calib, or take {self.name} out of the recipe",
            )
        kept: list[str] = []
        walked = 0
        for visit in BlockWalker(model, context, islice(context.calibration, self.samples), method=self):
            block = _Block(self, visit, context)
            if block.keys:
                walked += 1
                found = visit.once(block.learn)
                block.write(found)
                if not found:
                    kept.append(block.reason)
        context.notice(_summary(walked, kept))
        return False


class _Block:
    """The weights of one block that have codes of few bits.

    Attributes:
        reason: why the block kept its codes, once `learn` has found none.
    """

    def __init__(self, options: AutoRound, visit: Visit, context: CompileContext) -> None:
        self.options, self.visit, self.context = options, visit, context
        planned = context.plan.weights
        readers = Counter(weight for weight, _ in planned)
        inside = [(str(unit.weight), unit.node) for wave in visit.waves() for unit in wave]
        self.keys = [key for key in inside if readers[key[0]] == 1 and _learnable(planned[key].params)]
        self.weights = {key: planned[key] for key in self.keys}
        self.reason = "the learned codes were no better on other samples"

    def learn(self) -> dict[str, Array]:
        """The new codes, scales and zero points by node; empty where the block keeps its own."""
        device = self.context.device.in_torch
        try:
            graph = TorchGraph(self.visit.model, device)
        except ModelError as error:
            self.reason = error.what
            return {}
        named = {str(n.name): n for n in nodes(self.visit.model)}
        grids: dict[Key, LearnedGrid] = {}
        for key in self.keys:
            weight = constant(named[key[1]].inputs[1])
            assert weight is not None
            grids[key] = LearnedGrid(weight, self.weights[key], device)
        self.descend(graph, grids)
        learned = {key: grid.result() for key, grid in grids.items()}
        if self.error(learned) >= self.error({}):
            return {}
        parts: dict[str, Array] = {}
        for (_, node), made in learned.items():
            parts |= {f"codes of {node}": made.codes.astype(np.int16), f"scale of {node}": made.params.scale}
            parts[f"zero point of {node}"] = made.params.zero_point
        return parts

    def write(self, found: Arrays) -> None:
        """Put what `learn` returned into the plan."""
        for key in self.keys if found else ():
            old, node = self.weights[key], key[1]
            scale, zero_point = found[f"scale of {node}"], found[f"zero point of {node}"]
            codes = found[f"codes of {node}"].astype(old.codes.dtype)
            params = replace(old.params, scale=scale, zero_point=zero_point)
            self.context.plan.weights[key] = QuantizedWeight(params, codes)

    def descend(self, graph: TorchGraph, grids: Mapping[Key, LearnedGrid]) -> None:
        """Signed gradient descent over batches of the samples that teach."""
        import torch

        outputs = self.visit.results
        teaching = [i for i in range(self.visit.count) if self.teaches(i)]
        x, y = self.visit.inputs, self.visit.float_outputs
        random = np.random.default_rng([self.context.seed, self.visit.index])
        learned = [p for grid in grids.values() for p in grid.parameters]
        for step in range(self.options.iterations):
            rate = (1 - step / self.options.iterations) / self.options.iterations
            for i in random.permutation(teaching)[: self.options.batch]:
                graph.tensors.update({key[0]: grid.weight() for key, grid in grids.items()})
                given, wanted = graph(_tensors(x[i]), outputs), _tensors(y[i])
                loss = sum(_loss(given[n], wanted[n]) for n in outputs)
                loss.backward()  # type: ignore[union-attr]
            with torch.no_grad():
                for parameter in learned:
                    if parameter.grad is not None:
                        parameter -= rate * parameter.grad.sign()
                        parameter.grad = None
                for grid in grids.values():
                    grid.confine()

    def error(self, weights: Mapping[Key, QuantizedWeight]) -> float:
        """That of the block's outputs over the samples that judge, with `weights` in the place of the plan's."""
        plan = self.context.plan
        copy = self.visit.model.clone()
        for node in copy.graph:
            for key in self.keys:
                if node.name == key[1]:
                    made = weights.get(key, plan.weights[key])
                    value = dequantize(made.codes.astype(np.int32), made.params)
                    node.inputs[1].const_value = ir.tensor(np.asarray(value, np.float32))  # type: ignore[union-attr]
        outputs = self.visit.run_float(copy, self.judging(self.visit.inputs))
        return relative_error(self.judging(self.visit.float_outputs), outputs, self.visit.results)

    def teaches(self, sample: int) -> bool:
        return sample % _APART != _APART - 1 or self.visit.count < _APART

    def judging(self, samples: Iterable[Arrays]) -> list[Arrays]:
        """The samples that judge; all of them where there are few."""
        few = self.visit.count < _APART
        return [sample for i, sample in enumerate(samples) if few or not self.teaches(i)]


def _learnable(params: QuantParams) -> bool:
    return params.spec.format.is_integer and params.spec.format.bits < 8


def _tensors(arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The arrays for torch, on the device where they lie."""
    import torch

    return {name: torch.from_numpy(np.array(a)) if isinstance(a, np.ndarray) else a for name, a in arrays.items()}


def _loss(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """As relative_error.py."""
    import torch

    axes = tuple(range(1, wanted.ndim)) if wanted.ndim >= 4 else (-1,)
    energy = wanted.square().sum(axes)
    floor = 1e-3 * energy.mean()
    return ((given - wanted).square().sum(axes) / torch.maximum(energy, floor).clamp_min(1e-30)).mean()


def _summary(blocks: int, kept: Sequence[str]) -> str:
    reasons = "".join(f"; {kept.count(reason)} kept theirs: {reason}" for reason in dict.fromkeys(kept))
    return f"auto-round: {blocks - len(kept)} of {blocks} blocks took learned codes{reasons}"
