"""Decide which operations compute in int8 and give every tensor between them a scale.

    forms = argmin time(graph)   over the forms that the target's table offers (compiler/placement.py)
    s_t, z_t from the observed [min, max] of each tensor t that exists as codes (compiler/params.py)

A tensor stays float when an 8-bit grid over its range does not resolve it (activation_scales.py).
Times come from the target's table and the element counts that calibration saw, so placement knows
that a conversion can cost more than the operator it serves.

Errors: TargetError when the target does not take the formats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.context import CompileContext
from qcompile.compiler.costs import conversion_time, operation_times
from qcompile.compiler.graph import graphs, name_of
from qcompile.compiler.params import params_from_range
from qcompile.compiler.passes import Fact, Pass, Phase, StatisticRequest
from qcompile.compiler.placement import Operation, place
from qcompile.compiler.plan import Form, QuantPlan
from qcompile.compiler.specs import PerChannel, PerTensor, QuantSpec
from qcompile.compiler.statistics import RANGE
from qcompile.compiler.targets.table import Formats, Lowering, PlacementRule
from qcompile.compiler.units import Candidate, candidates, unit_on_codes, within_reach
from qcompile.passes.quantize.activation_scales import ActivationScales
from qcompile.passes.quantize.keep_float import kept_by, pin
from qcompile.passes.quantize.opset_of_formats import demand

ActivationFormat = Literal["uint8", "int8", "uint16", "int16", "fp8-e4m3", "fp8-e5m2"]
WeightFormat = Literal["int8", "uint8", "fp8-e4m3", "fp8-e5m2"]
_STATIC = {Form.FULL, Form.INPUTS, Form.PASS, Form.ROWS}
_BY_TIME = _STATIC - {Form.ROWS}
_ANY_RANGE = (-4.0, 4.0)
"""Of activations whose values do not matter."""


class PlaceInt8(Pass):
    """Choose the operations that run in int8, and the scales of their activations."""

    name: ClassVar[str] = "place-int8"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.STATISTICS})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT})

    activation_products: bool = Field(
        default=False, description="also quantize MatMul of two activations (attention), which costs accuracy"
    )
    resolution: float = Field(
        default=0.5,
        ge=0,
        description="smallest mean magnitude of a tensor, in quantization steps, that an 8-bit grid may serve",
    )
    activation: ActivationFormat | None = Field(
        default=None, description="format of activations; left out, what the target's kernels are made for"
    )
    weight: WeightFormat | None = Field(default=None, description="format of weights; left out, the target's")
    symmetric: bool | None = Field(
        default=None, description="zero points of activations in the middle of their range; left out, the target's way"
    )
    per_channel: bool = Field(default=True, description="a scale for each output channel of a weight")
    keep_float: tuple[str, ...] = Field(default=(), description="names (with * and ?) of nodes that stay float")

    def statistics(self, model: ir.Model, context: CompileContext) -> Sequence[StatisticRequest]:
        wanted: dict[str, None] = {}
        self.formats(model, context)
        for graph in graphs(model):
            for candidate in self.reached(candidates(graph, context.target), context):
                wanted.update((name_of(v), None) for v in (*candidate.reads(), candidate.output))
        return [StatisticRequest(name, RANGE) for name in wanted]

    def reached(self, found: list[Candidate], context: CompileContext) -> list[Candidate]:
        """The candidates that are worth observing."""
        formats = self.pair(context)
        open_to_choice = [c for c in found if not self.refusal(c, formats, context.plan)]
        weighed = context.target.placement is PlacementRule.MINIMUM_CUT and formats.computed
        return within_reach(open_to_choice) if weighed else open_to_choice

    def pair(self, context: CompileContext) -> Formats:
        """The formats that the options name, as far as the target takes them."""
        return context.target.pair(self.activation, self.weight, self.symmetric)

    def formats(self, model: ir.Model, context: CompileContext) -> Formats:
        """`pair`, where nothing speaks against placing it in `model`.

        Raises:
            TargetError: the target does not take these formats.
            RecipeError: the model's opset has no conversion to one of them.
        """
        return demand(self.pair(context), model, self.name)

    def refusal(self, candidate: Candidate, formats: Formats, plan: QuantPlan) -> str:
        """What speaks against a candidate before any statistic is known."""
        kept = kept_by(candidate.node, self.keep_float) or plan.pinned_because(str(candidate.node.name))
        if kept:
            return kept
        if _STATIC.isdisjoint(candidate.row.forms):
            return (candidate.row.refused or {}).get(
                Form.INPUTS, "it has no form whose scales are fixed by calibration"
            )
        if not formats.computed and candidate.row.weight is None:
            return f"it has no weight, and no kernel computes on {formats.activation.name} codes"
        if candidate.row.on_request and not self.activation_products:
            return "a product of two activations (option activation-products)"
        return candidate.obstacle

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        formats = self.formats(model, context)
        pin(model, self.keep_float, context, self.name)
        for graph in graphs(model):
            _GraphPlacement(self, graph, context, formats).run()
        if formats.warning:
            context.notice(formats.warning)
        return False

    def trials(self, model: ir.Model, context: CompileContext) -> Iterator[tuple[Candidate, QuantPlan]]:
        """Plans with one operation each, see `Placing`."""
        formats = self.pair(context)
        activation, weight = self.specs(formats)
        for candidate in self.reached(candidates(model.graph, context.target), context):
            for form in (f for f in candidate.row.forms if f in _BY_TIME and formats.computed):
                unit = unit_on_codes(candidate, form, weight, context.target.block)
                names = [*(n for n in unit.inputs if n is not None), unit.output]
                grids = dict.fromkeys(names, params_from_range(activation, *_ANY_RANGE))
                yield candidate, QuantPlan({unit.node: unit}, grids)

    def specs(self, formats: Formats) -> tuple[QuantSpec, QuantSpec]:
        """What activations and weights become; the axis of a weight is set per node."""
        symmetric = formats.symmetric[0] if self.symmetric is None else self.symmetric
        grain = PerChannel(0) if self.per_channel else PerTensor()
        return QuantSpec(formats.activation, symmetric=symmetric), QuantSpec(formats.weight, grain, symmetric=True)


class _GraphPlacement:
    """The placement of one graph; values of outer graphs are float inputs to it."""

    def __init__(self, options: PlaceInt8, graph: ir.Graph, context: CompileContext, formats: Formats) -> None:
        self.options, self.graph, self.context, self.formats = options, graph, context, formats
        self.plan, self.target = context.plan, context.target
        self.activation, self.weight = options.specs(formats)
        self.scales = ActivationScales(context.statistics, self.activation, options.resolution)

    def run(self) -> None:
        open_to_choice: list[Candidate] = []
        found = candidates(self.graph, self.target)
        reached = {c.node for c in self.options.reached(found, self.context)}
        for candidate in found:
            alone = "" if candidate.node in reached else "no operation around it computes on codes"
            obstacle = self.options.refusal(candidate, self.formats, self.plan) or alone or self.obstacle(candidate)
            if obstacle:
                self.plan.kept_float[str(candidate.node.name)] = obstacle
            else:
                open_to_choice.append(candidate)
        forms = self.choose(open_to_choice)
        for candidate in open_to_choice:
            form = forms[str(candidate.node.name)]
            if form is Form.FLOAT:
                self.plan.kept_float[str(candidate.node.name)] = (
                    "int8 with the conversions it needs would take longer than float here"
                )
            else:
                self.add_unit(candidate, form)
        self.list_the_rest({n for c in found for n in c.nodes})

    def list_the_rest(self, listed: set[ir.Node]) -> None:
        """Operators that compute in floating point and have no row in the target's table."""
        for node in self.graph:
            dtype = node.outputs[0].dtype if node.outputs else None
            if node not in listed and dtype is not None and dtype.is_floating_point() and not _has_bodies(node):
                self.plan.kept_float[str(node.name)] = f"there is no int8 form of it on {self.target.name}"

    def obstacle(self, candidate: Candidate) -> str:
        """What the observed ranges say against a candidate."""
        blocked = self.scales.unreadable(candidate)
        if blocked or Form.ROWS in candidate.row.forms:
            return blocked
        if candidate.row.same_params:
            return self.scales.unmovable(candidate)
        unwritable = self.scales.unwritable(candidate.output)
        return unwritable if Form.INPUTS not in candidate.row.forms else ""

    def choose(self, open_to_choice: list[Candidate]) -> dict[str, Form]:
        """Forms by the target's placement rule."""
        if self.target.placement is PlacementRule.WEIGHTED_INPUTS and self.context.measured is None:
            return {str(c.node.name): next(f for f in c.row.forms if f in _STATIC) for c in open_to_choice}
        if not self.formats.computed:
            kept = {Form.ROWS}
            return {str(c.node.name): next(iter(kept & set(c.row.forms)), Form.ROUNDED) for c in open_to_choice}
        rows = {str(c.node.name): Form.ROWS for c in open_to_choice if Form.ROWS in c.row.forms}
        chosen = [c for c in open_to_choice if str(c.node.name) not in rows]
        values: dict[str, ir.Value] = {name_of(v): v for c in chosen for v in (*c.reads(), c.output)}
        inside = {n for c in chosen for n in c.nodes}
        conversions = {name: conversion_time(v, self.scales.elements, self.context) for name, v in values.items()}
        outside = [n for n, v in values.items() if v.is_graph_output() or any(u.node not in inside for u in v.uses())]
        operations = [self.operation(c) for c in chosen]
        forms = place(operations, conversions, outside, [n for n in values if n in self.scales.unresolved])
        return rows | self.with_swallowed(chosen, self.with_whole_outputs(chosen, forms))

    def with_whole_outputs(self, chosen: list[Candidate], forms: dict[str, Form]) -> dict[str, Form]:
        """A product in Q/DQ that is read as float and as codes writes codes: the runtime fuses it with neither
        a QuantizeLinear nor a float output when it has both."""
        read = {name_of(v) for c in chosen if forms[str(c.node.name)] is not Form.FLOAT for v in c.reads()}
        whole = {
            str(c.node.name): Form.FULL
            for c in chosen
            if forms[str(c.node.name)] is Form.INPUTS
            and Form.FULL in c.row.forms
            and c.row.how(Form.INPUTS) is Lowering.QDQ
            and name_of(c.output) in read
        }
        return forms | whole

    def with_swallowed(self, chosen: list[Candidate], forms: dict[str, Form]) -> dict[str, Form]:
        """Float operators between codes that the runtime would quantize per tensor anyway become units."""
        written = {name_of(c.output) for c in chosen if forms[str(c.node.name)] in (Form.FULL, Form.PASS)}
        read = {name_of(v) for c in chosen if forms[str(c.node.name)] is not Form.FLOAT for v in c.reads()}
        swallowed = {
            str(c.node.name): Form.FULL
            for c in chosen
            if c.node.op_type in self.target.swallows
            and Form.FULL in c.row.forms
            and name_of(c.output) in read
            and written.issuperset(name_of(v) for v in c.reads())
        }
        return forms | swallowed

    def operation(self, candidate: Candidate) -> Operation:
        times = operation_times(candidate, self.scales.elements, self.context)
        return Operation(
            name=str(candidate.node.name),
            float_time=times.pop(Form.FLOAT),
            times={form: time for form, time in times.items() if time < math.inf},
            reads=tuple(name_of(v) for v in candidate.reads()),
            writes=(name_of(candidate.output),),
        )

    def add_unit(self, candidate: Candidate, form: Form) -> None:
        operation = self.operation(candidate)
        for offered, time in operation.times.items():
            self.plan.float_ms[operation.name, offered] = (operation.float_time - time) / 1e6
        weight = self.target.weight if form is Form.ROWS else self.weight  # rows are looked up, whatever computes
        unit = unit_on_codes(candidate, form, weight, self.target.block)
        self.plan.units[unit.node] = unit
        reads = [name for name in unit.inputs if name is not None]
        for name in reads:
            self.plan.tensors.setdefault(name, self.scales.params[name])
        if form is Form.PASS:
            self.plan.tensors[unit.output] = self.plan.tensors[reads[0]]
        elif form is Form.FULL:
            self.plan.tensors[unit.output] = self.scales.params[unit.output]


def _has_bodies(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
