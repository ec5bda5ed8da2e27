"""Choose the operations whose weights become int8 and whose inputs are quantized each time they run.

    DYNAMIC   one scale for the whole input, from its own minimum and maximum; fastest on the CPU.
              On CUDA one scale for each row of the input, int8 or FP8, by an operator of ours
    BLOCKS    one scale for each row of the input and block of weights; outliers of one row hurt no other
    WEIGHTS   where neither exists: int8 weights in the file, float arithmetic

What an earlier pass has placed stays as it is. The choice matters: SmolLM2-135M has perplexity 31.3 in
float, 31.4 in BLOCKS and 50.9 in DYNAMIC. No statistics are needed, so no calibration data either. An
operation that the target's table says would be slower than float stays float; work is counted from the
shapes, an unknown dimension as 1.
Source: dynamic quantization as in ONNX Runtime's and PyTorch's tools.

Errors: TargetError when the target does not take the format, RecipeError when the model's opset lacks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.context import CompileContext
from qcompile.compiler.costs import operation_times
from qcompile.compiler.formats import FORMATS, INT8
from qcompile.compiler.graph import graphs
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import Form, QuantPlan, Unit
from qcompile.compiler.specs import PerChannel, QuantSpec
from qcompile.compiler.targets.table import Lowering
from qcompile.compiler.units import Candidate, candidates, elements, unit_reading_float
from qcompile.passes.quantize.keep_float import kept_by, pin
from qcompile.passes.quantize.opset_of_formats import demand

_WHATEVER_TIME = (Form.ROWS, Form.WEIGHTS)
"""Forms that are there to make a model small."""


class PlaceDynamic(Pass):
    """Choose the operations that quantize their own inputs."""

    name: ClassVar[str] = "place-dynamic"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT})

    per_token: bool = Field(
        default=True,
        description="linear layers in blocks, with a scale for each row of their input; without, one scale for the "
        "whole input, which is twice as fast at many rows and ruins models with outliers",
    )
    block_size: Literal[16, 32, 64, 128, 256] | None = Field(
        default=None, description="weights that share a scale in a block; left out, the target's table says"
    )
    format: Literal["int8", "fp8-e4m3"] = Field(
        default="int8",
        description="format of the inputs and weights of linear layers; fp8-e4m3 where the target has it",
    )
    keep_float: tuple[str, ...] = Field(default=(), description="names (with * and ?) of nodes that stay float")

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        if FORMATS[self.format] is not INT8:
            demand(context.target.pair(self.format, self.format, None), model, self.name)
        pin(model, self.keep_float, context, self.name)
        for graph in graphs(model):
            for candidate in candidates(graph, context.target):
                self._place(candidate, context)
        return False

    def _place(self, candidate: Candidate, context: CompileContext) -> None:
        name = str(candidate.node.name)
        if name in context.plan.units or context.plan.pinned_because(name):
            return
        form = self._form(candidate)
        obstacle = self._refusal(candidate, form) or (_slower(candidate, form, context) if form else "")
        if obstacle or form is None:
            context.plan.kept_float.setdefault(name, obstacle)
            return
        context.plan.kept_float.pop(name, None)
        context.plan.units[name] = self._unit(candidate, form, context)

    def trials(self, model: ir.Model, context: CompileContext) -> Iterator[tuple[Candidate, QuantPlan]]:
        """Plans with one operation each, see `Placing`."""
        for candidate in candidates(model.graph, context.target):
            form = self._form(candidate)
            if form is not None and form not in _WHATEVER_TIME and not self._refusal(candidate, form):
                unit = self._unit(candidate, form, context)
                yield candidate, QuantPlan({unit.node: unit})

    def _unit(self, candidate: Candidate, form: Form, context: CompileContext) -> Unit:
        by_operator = candidate.row.how(form) is Lowering.OPERATOR
        weights = QuantSpec(FORMATS[self.format], PerChannel(0), symmetric=True) if by_operator else None
        return unit_reading_float(candidate, form, context.target, self.block_size, weights)

    def _form(self, candidate: Candidate) -> Form | None:
        return next((f for f in self._preferred() if f in candidate.row.forms), None)

    def _preferred(self) -> tuple[Form, ...]:
        linear = (Form.BLOCKS, Form.DYNAMIC) if self.per_token else (Form.DYNAMIC, Form.BLOCKS)
        return (*linear, Form.ROWS, Form.WEIGHTS)

    def _refusal(self, candidate: Candidate, form: Form | None) -> str:
        row, kept = candidate.row, kept_by(candidate.node, self.keep_float)
        if kept:
            return kept
        if form is None:
            return (row.refused or {}).get(Form.DYNAMIC, "it has no form that quantizes its inputs as it runs")
        return candidate.obstacle


def _slower(candidate: Candidate, form: Form, context: CompileContext) -> str:
    times = operation_times(candidate, elements, context)
    if form in _WHATEVER_TIME or times[form] <= times[Form.FLOAT]:
        return ""
    return "int8 with the quantization of its input would take longer than float here"
