"""Choose the layers whose weights are stored as codes, and the format, while their inputs stay float in the graph.

    w = s_b (q - z_b)   for each block b of weights along what is summed over

A language model that writes one token after the other waits for its weights: with 4 bits in blocks of 32 it reads 4.5
bits for each, not 32. The target's table says which formats it stores, in which blocks, and by which operator.
A block longer than a channel becomes the shortest one that holds it. Tables are stored where they are looked up by
ids that the model is given; those of positions, which the graph counts, are small and weigh on every layer.

What an earlier pass has placed stays as it is. Source: block-wise weights as in Dettmers et al., "8-bit Optimizers via
Block-wise Quantization", 2022, and ONNX Runtime's MatMulNBits.

Errors: TargetError when the target stores no weights in what is asked for; RecipeError when the opset lacks the
operator, or a name under `layers` matches nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.context import CompileContext
from qcompile.compiler.formats import FORMATS
from qcompile.compiler.graph import graphs, nodes, opset
from qcompile.compiler.layer_selection import idle_roles
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import Form, QuantPlan, Unit
from qcompile.compiler.roles import Role, looks_up_ids, roles, sources_of
from qcompile.compiler.specs import PerBlock, PerChannel, QuantSpec
from qcompile.compiler.targets.storage import Storage
from qcompile.compiler.targets.table import Lowering, Target
from qcompile.compiler.units import Candidate, candidates, elements, unit_reading_float
from qcompile.errors import RecipeError, TargetError
from qcompile.passes.quantize.tied_tables import multiplied_table, share
from qcompile.passes.quantize.weight_options import (
    BlockSize,
    LayerOptions,
    Wanted,
    WeightFormat,
    WeightOptions,
    wanted_of,
)

_FORMS = {"float": (Form.WEIGHTS, Form.ROWS), "int8": (Form.BLOCKS, Form.ROWS)}


class PlaceWeights(Pass, WeightOptions):
    """Choose which weights are stored as codes."""

    name: ClassVar[str] = "place-weights"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT})

    format: WeightFormat = Field(default="int4", description="format of the weights")
    layers: tuple[LayerOptions, ...] = Field(
        default=(),
        description="what is different in some layers: entries with `name` (with * and ?) or `role` (attention, mlp, "
        "embedding, head) or both, and the options above, or `keep-float: true`. They apply in order; one that names "
        "a format leaves to the table what it does not say",
    )

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        known, plan, everywhere = roles(model), context.plan, self._everywhere()
        self._demand(everywhere, context.target, model)
        for i, entry in enumerate(self.layers):
            wanted = everywhere.changed(entry, f"layers[{i}]")
            if not wanted.kept_by and not any(fits(s, wanted) for s in context.target.storages):
                context.notice(f"{context.target.name} stores no {wanted}: layers with the {entry} stay float")
        for role in idle_roles(model, self.layers, known, self.name):
            context.notice(f"no layer of this model has the role {role} (option layers of {self.name})")
        for graph in graphs(model):
            layers = self._layers(graph, known, context)
            for candidate, wanted in layers.values():
                _place(candidate, wanted, context)
            _tie(layers, context)
        for weight, specs in _of_weights(plan).items():
            if len(specs) > 1:
                context.notice(f"weight '{weight}' is stored {len(specs)} times: as " + " and as ".join(specs))
        for node in nodes(model):
            if node.op_type in ("MatMul", "Gemm") and node.name not in plan.units:
                plan.kept_float.setdefault(str(node.name), _no_weight(node))
        return False

    def trials(self, model: ir.Model, context: CompileContext) -> Iterator[tuple[Candidate, QuantPlan]]:
        """Plans with one layer each, see `Placing`: where the same codes can be read by more than one operator."""
        for candidate, wanted in self._layers(model.graph, roles(model), context).values():
            units, _ = ([], "") if _refusal(candidate, wanted) else _stored_units(candidate, wanted, context.target)
            yield from ((candidate, QuantPlan({unit.node: unit})) for unit in units if len(units) > 1)

    def _everywhere(self) -> Wanted:
        return Wanted("format", self.format, self.block_size, self.symmetric, self.activations)

    def _layers(
        self, graph: ir.Graph, known: Mapping[str, Role], context: CompileContext
    ) -> dict[str, tuple[Candidate, Wanted]]:
        """The layers of one graph that are not placed yet, and what their weights shall become."""
        everywhere, placed = self._everywhere(), context.plan.units
        return {
            str(c.node.name): (c, wanted_of(c.node, known.get(str(c.node.name)), everywhere, self.layers))
            for c in candidates(graph, context.target)
            if c.row.weight is not None
            and c.node.name not in placed
            and not context.plan.pinned_because(str(c.node.name))
        }

    def _demand(self, wanted: Wanted, target: Target, model: ir.Model) -> None:
        """The target stores what is asked for, and the model's opset has the operator for it."""
        fitting = [s for s in target.storages if "MatMul" in s.op_types and fits(s, wanted)]
        if not fitting:
            raise TargetError(
                target.refused.get(wanted.format) or f"target '{target.name}' stores no {wanted}",
                where=self.name,
                hint="it stores " + "; ".join(map(str, target.storages)) if target.storages else "",
            )
        least = max(s.opset for s in fitting)
        if opset(model) < least:
            raise RecipeError(
                f"{wanted.format} weights need opset {least} on {target.name}, and the model has {opset(model)}",
                where=self.name,
                hint=f"set upgrade-opset.minimum to {least} or more",
            )


def _place(candidate: Candidate, wanted: Wanted, context: CompileContext) -> None:
    name, plan = str(candidate.node.name), context.plan
    if wanted.kept_by:
        plan.pinned.add(name)
    unit, obstacle = None, _refusal(candidate, wanted)
    if not obstacle:
        unit, obstacle = stored_unit(candidate, wanted, context)
    if unit is None:
        plan.kept_float.setdefault(name, obstacle)
        return
    plan.kept_float.pop(name, None)
    plan.units[name] = unit


def _refusal(candidate: Candidate, wanted: Wanted) -> str:
    """Why a layer stays float whatever the target can store."""
    return wanted.kept_by or candidate.obstacle or _nothing(candidate) or _no_embedding(candidate.node)


def _tie(layers: dict[str, tuple[Candidate, Wanted]], context: CompileContext) -> None:
    """Let a table that is the weight of a product too follow that product, so that it is stored once."""
    plan, placed = context.plan, [context.plan.units[name] for name in layers if name in context.plan.units]
    values = {v.name: v for c, _ in layers.values() for v in c.node.inputs if v is not None and v.name}
    products = [u for u in placed if u.op_type in ("MatMul", "Gemm")]
    for table in (u for u in placed if u.op_type == "Gather"):
        product = multiplied_table(table, products, values)
        if product is None:
            continue
        candidate, wanted = layers[table.node]
        if not wanted.of_layer or wanted == replace(layers[product.node][1], option=wanted.option):
            assert product.weight_spec is not None
            grain, symmetric = product.weight_spec.granularity, product.weight_spec.symmetric
            size: BlockSize = grain.size if isinstance(grain, PerBlock) else "channel"  # type: ignore[assignment]
            alike = replace(layers[product.node][1], block_size=size, symmetric=symmetric)
            like, _ = stored_unit(candidate, alike, context)
            table = like if like is not None and share(like, product) else table
        if share(table, product):
            plan.units[table.node] = replace(table, tied=product.node)
        else:
            context.notice(
                f"the table of '{table.node}' is the weight of '{product.node}' too, and they are stored apart, as "
                f"{table.weight_spec} and {product.weight_spec}"
            )


def _of_weights(plan: QuantPlan) -> dict[str, list[str]]:
    """What each weight becomes, where several units read it."""
    found: dict[str, list[str]] = {}
    for unit in plan.units.values():
        specs = found.setdefault(str(unit.weight), [])
        if unit.weight and not unit.tied and str(unit.weight_spec) not in specs:
            specs.append(str(unit.weight_spec))
    return found


def _no_weight(node: ir.Node) -> str:
    """Why a product has no weight to store."""
    second = node.inputs[1]
    made = second.producer() if second is not None else None
    if second is not None and second.is_graph_input():
        return "its weight is an input of the model"
    if made is not None and not any(v.is_graph_input() for v in sources_of(second)):
        return f"its weight is no constant: {made.op_type} '{made.name}' computes it"
    return "it multiplies two activations: there is no weight to store"


def _nothing(candidate: Candidate) -> str:
    weight = candidate.node.inputs[candidate.row.weight or 0]
    return "" if elements(weight) else "its weight has no elements"


def _no_embedding(node: ir.Node) -> str:
    if node.op_type != "Gather" or looks_up_ids(node):
        return ""
    return "its rows are looked up by positions that the graph counts: the table is small and weighs on every layer"


def stored_unit(candidate: Candidate, wanted: Wanted, context: CompileContext) -> tuple[Unit | None, str]:
    """The unit of a layer in the first way of storing its weight that fits, or why there is none.

    Where times were taken, the fastest of those that read the same codes.
    """
    units, obstacle = _stored_units(candidate, wanted, context.target)
    times = context.measured.lowerings if context.measured else {}
    fastest = min(units, key=lambda u: times.get((u.node, u.lowering), math.inf), default=None)
    return fastest, "" if fastest else obstacle


def _stored_units(candidate: Candidate, wanted: Wanted, target: Target) -> tuple[list[Unit], str]:
    """The unit of a layer in every way of storing its weight that gives the codes of the first one that fits."""
    node, obstacle = candidate.node, f"{target.name} stores no {wanted} of a {candidate.node.op_type}"
    found: list[Unit] = []
    for storage in target.storages:
        if node.op_type not in storage.op_types or not fits(storage, wanted):
            continue
        obstacle = storage.obstacle(node)
        spec = None if obstacle else _spec(candidate, storage, wanted)
        if spec is not None:
            forms = storage.forms if wanted.activations is None else _FORMS[wanted.activations]
            unit = unit_reading_float(candidate, next(f for f in storage.forms if f in forms), target)
            if not found:
                size = spec.granularity.size if isinstance(spec.granularity, PerBlock) else "channel"
                wanted = replace(wanted, block_size=size, symmetric=spec.symmetric)  # type: ignore[arg-type]
            same = bool(found) and (found[0].weight_spec, found[0].form) == (spec, unit.form)
            if not found or (same and storage.lowering is not Lowering.EMULATED):
                found.append(replace(unit, weight_spec=spec, lowering=storage.lowering))
        obstacle = obstacle or "its channels do not fall into whole blocks"
    return found, obstacle


def fits(storage: Storage, wanted: Wanted) -> bool:
    """Whether what is asked for can be stored so."""
    fmt = FORMATS[wanted.format]
    size = None if wanted.block_size == "channel" else wanted.block_size
    return (
        fmt in storage.formats
        and (wanted.block_size is None or size in ((fmt.block,) if fmt.block else storage.blocks))
        and (wanted.symmetric is None or not fmt.is_integer or wanted.symmetric in storage.symmetric)
        and (wanted.activations is None or any(f in storage.forms for f in _FORMS[wanted.activations]))
    )


def _spec(candidate: Candidate, storage: Storage, wanted: Wanted) -> QuantSpec | None:
    """What the weight becomes; None where its channels do not fall into blocks."""
    node, row, fmt = candidate.node, candidate.row, FORMATS[wanted.format]
    assert row.weight is not None
    assert row.weight_axis is not None
    weight, outputs = node.inputs[row.weight], row.weight_axis(node)
    assert weight is not None
    assert weight.shape is not None
    usual = fmt.is_signed and storage.symmetric[0]
    symmetric = not fmt.is_integer or (usual if wanted.symmetric is None else wanted.symmetric)
    full_range = storage.full_range and symmetric and fmt.is_integer and fmt.is_signed and fmt.bits <= 4
    spec = QuantSpec(fmt, PerChannel(outputs), symmetric, full_range, storage.scales)
    size = fmt.block or wanted.block_size or storage.blocks[0]
    if not isinstance(size, int):
        return spec
    depth = weight.shape.numpy()[1 - outputs]
    block = fmt.block or storage.block_of(depth, size if wanted.block_size else None)
    if block is None or (storage.whole_blocks and depth % block):
        return None
    return replace(spec, granularity=PerBlock(1 - outputs, block))
