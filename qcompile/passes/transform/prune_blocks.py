"""Take out whole residual branches until a share of the work is gone, and let the layers behind make good for them.

    y = x + f(x)  ->  y = x         importance of f:  E ||f(x)||^2 / ||y||^2, over rows (relative_error.py)

Branches that move their stream least for the multiply-accumulates that they cost go first (pruning/budget.py). Then the
linear layers behind are solved anew in order, each to give what it gave, from what the shortened model gives it
(recovery.py); a layer without a bias gets none.
Source: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024, which takes
whole layers by the cosine of x and y; Veit et al., "Residual Networks Behave Like Ensembles", 2016.

Errors: DataError without samples; RecipeError where the budget cannot be met.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import tee
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.block_walker import BlockWalker, Visit
from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import add_initializer, name_of
from qcompile.compiler.layer_grams import LayerInputs, source_of
from qcompile.compiler.linear_layers import LinearLayer, linear_layers
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.refit import summary
from qcompile.compiler.relative_error import relative_error
from qcompile.compiler.tensor_shapes import shapes_of
from qcompile.errors import PassError, RecipeError
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.transform.channels.branches import Branch, remove_branches, residual_branches
from qcompile.passes.transform.pruning.budget import Prunable, ranked, shortest
from qcompile.passes.transform.pruning.columns import refitted
from qcompile.passes.transform.pruning.macs import counts, operands
from qcompile.passes.transform.recovery import Recovery, write


class PruneBlocks(Pass):
    """Take out the residual branches that do least for the work that they cost."""

    name: ClassVar[str] = "prune-blocks"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})
    changes_function: ClassVar[bool] = True
    measures: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = True

    remove: float = Field(default=0.1, gt=0, lt=1, description="share of all multiply-accumulates that goes at least")
    refit: bool = Field(default=True, description="solve the layers behind anew, by least squares")
    mask: str | None = Field(
        default=None, description="name of a model input that is 1 where a position counts, such as `attention_mask`"
    )

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        inputs = LayerInputs.of(self.name, self.mask, model, context)
        branches = residual_branches(model)
        if not branches:
            context.notice(f"{self.name}: the model has no residual branch that could go")
            return False
        shapes = shapes_of(operands(model), model, next(iter(inputs.samples)), context.target.providers)
        gone, share = self.chosen(branches, self.moved(branches, model, inputs), counts(model, shapes))
        try:
            remove_branches(model.clone(), gone, self.name)
        except PassError as error:
            raise RecipeError(
                f"{self.name} cannot remove {self.remove:.0%}: {error.what}", where=error.where, hint="lower remove"
            ) from None
        if self.refit:
            self.make_good(gone, model, inputs)
        remove_branches(model, gone, self.name)
        named = ", ".join(branch.sum for branch in gone)
        context.notice(
            f"{self.name}: {len(gone)} of {len(branches)} residual branches are gone, and with them {share:.1%} of the "
            f"multiply-accumulates: those of {named}"
        )
        return True

    def moved(self, branches: Sequence[Branch], model: ir.Model, inputs: LayerInputs) -> list[float]:
        """How far each branch moves its stream."""
        sums = {branch.sum: _operands(branch, model) for branch in branches}
        found: dict[str, list[float]] = {}
        for visit in BlockWalker(model, inputs.context, inputs.samples, method=self):
            for name in visit.block.nodes:
                if name in sums:
                    found[name] = [_distance(visit, kept, total) for kept, total in sums[name]]
        return [found[b.sum][b.kept] for b in branches]

    def chosen(
        self, branches: Sequence[Branch], moved: Sequence[float], macs: Mapping[str, float]
    ) -> tuple[list[Branch], float]:
        """The branches that go, in the order of the graph, and their share of the multiply-accumulates."""

        def share(numbers: Sequence[int]) -> float:
            names = {name for i in numbers for name in branches[i].nodes}
            return sum(macs.get(name, 0.0) for name in names) / sum(macs.values())

        costs = [sum(macs.get(name, 0.0) for name in branch.nodes) for branch in branches]
        order = ranked([Prunable(np.array([m]), cost, 1, 0) for m, cost in zip(moved, costs, strict=True)])
        found = shortest(order, lambda steps: share([step.group for step in steps]) >= self.remove)
        if found is None:
            raise RecipeError(
                f"{self.name} cannot remove {self.remove:.0%} of the multiply-accumulates: all residual branches "
                f"together have {share(range(len(branches))):.0%}",
                hint="lower remove",
            )
        numbers = sorted(step.group for step in found)
        return [branches[i] for i in numbers], share(numbers)

    def make_good(self, gone: Sequence[Branch], model: ir.Model, inputs: LayerInputs) -> None:
        """Silence the branches, one after the other, and solve the layers behind anew."""
        layers = {layer.name: layer for layer in _behind(gone, model)}
        sums, names = {branch.sum: branch for branch in gone}, Names(model)
        errors: dict[str, tuple[float, float]] = {}
        walker = BlockWalker(model, inputs.context, inputs.samples, method=self, in_waves={*layers, *sums})
        for visit in walker:
            wave = [layers[name] for name in visit.block.nodes if name in layers]
            if wave:
                found = visit.once(partial(self.solved, wave, visit, inputs))
                errors |= {layer.name: write(layer, found, names, self.name) for layer in wave}
            for name in visit.block.nodes:
                if name in sums:
                    _silence(sums[name], model, names)
        if errors:
            inputs.context.notice(summary(self.name, errors))

    def solved(self, wave: Sequence[LinearLayer], visit: Visit, inputs: LayerInputs) -> dict[str, npt.NDArray[Any]]:
        grams = inputs.grams([layer.node for layer in wave], visit, with_float=True)
        found: dict[str, npt.NDArray[Any]] = {}
        for layer in wave:
            gram, weight = grams[source_of(layer.node)], visit.device.put(layer.matrix())
            solve = partial(refitted, weight, kept=np.arange(layer.shape[2]))
            recovery = Recovery.of(weight, weight, gram, refitted=solve, bias=layer.bias is not None)
            found |= recovery.arrays(layer.name)
        return found


def _operands(branch: Branch, model: ir.Model) -> list[tuple[str, str]]:
    """For each operand of the sum of a branch, its name and that of the sum."""
    node = next(n for n in model.graph if n.name == branch.sum)
    return [(name_of(v), name_of(node.outputs[0])) for v in node.inputs if v is not None]


def _distance(visit: Visit, kept: str, total: str) -> float:
    exact, given = tee(visit.float_values([kept, total]))
    return relative_error(exact, ({total: values[kept]} for values in given), [total])


def _behind(gone: Sequence[Branch], model: ir.Model) -> Iterator[LinearLayer]:
    """The linear layers that stay and stand behind the first branch that goes."""
    place = {str(node.name): i for i, node in enumerate(model.graph)}
    first, lost = min(place[branch.sum] for branch in gone), {name for branch in gone for name in branch.nodes}
    for layer in linear_layers(model)[0]:
        if place[layer.name] > first and layer.name not in lost:
            yield layer


def _silence(branch: Branch, model: ir.Model, names: Names) -> None:
    """Let the sum add nothing, so that what is behind sees the model without the branch."""
    node = next(n for n in model.graph if n.name == branch.sum)
    silenced = node.inputs[1 - branch.kept]
    assert silenced is not None
    assert silenced.dtype is not None
    zero = add_initializer(model.graph, names.fresh(f"{branch.sum}_silence"), np.zeros((), np.float32), silenced.dtype)
    nothing = ir.node("Mul", [silenced, zero], name=names.fresh(f"{branch.sum}_silenced"))
    nothing.outputs[0].name = names.fresh(f"{name_of(silenced)}_silenced")
    nothing.outputs[0].type, nothing.outputs[0].shape = silenced.type, silenced.shape
    model.graph.insert_before(node, nothing)
    node.replace_input_with(1 - branch.kept, nothing.outputs[0])
