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

from dataclasses import replace
from typing import ClassVar

import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.context import CompileContext
from qcompile.compiler.formats import FORMATS
from qcompile.compiler.graph import graphs, opset
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import Form, Unit
from qcompile.compiler.roles import looks_up_ids, roles
from qcompile.compiler.specs import PerBlock, PerChannel, QuantSpec
from qcompile.compiler.targets.storage import Storage
from qcompile.compiler.targets.table import Target
from qcompile.compiler.units import Candidate, candidates, unit_reading_float
from qcompile.errors import RecipeError, TargetError
from qcompile.passes.quantize.weight_options import (
    LayerOptions,
    Wanted,
    WeightFormat,
    WeightOptions,
    idle_roles,
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
        known = roles(model)
        everywhere = Wanted("format", self.format, self.block_size, self.symmetric, self.activations)
        self._demand(everywhere, context.target, model)
        for i, entry in enumerate(self.layers):
            self._demand(everywhere.changed(entry, f"layers[{i}]"), context.target, model)
        for role in idle_roles(model, self.layers, known, self.name):
            context.notice(f"no layer of this model has the role {role} (option layers of {self.name})")
        for graph in graphs(model):
            for candidate in candidates(graph, context.target):
                node = candidate.node
                if candidate.row.weight is not None and node.name not in context.plan.units:
                    wanted = wanted_of(node, known.get(str(node.name)), everywhere, self.layers)
                    _place(candidate, wanted, context)
        return False

    def _demand(self, wanted: Wanted, target: Target, model: ir.Model) -> None:
        """The target stores what is asked for, and the model's opset has the operator for it."""
        fitting = [s for s in target.storages if fits(s, wanted)]
        if wanted.kept_by:
            return
        where = f"{self.name}.{wanted.option}"
        if not fitting:
            raise TargetError(
                target.refused.get(wanted.format) or f"target '{target.name}' stores no {wanted}",
                where=where,
                hint="it stores " + "; ".join(map(str, target.storages)) if target.storages else "",
            )
        least = min(s.opset for s in fitting)
        if opset(model) < least:
            raise RecipeError(
                f"{wanted.format} weights need opset {least} on {target.name}, and the model has {opset(model)}",
                where=where,
                hint=f"set upgrade-opset.minimum to {least} or more",
            )


def _place(candidate: Candidate, wanted: Wanted, context: CompileContext) -> None:
    name, node, plan = str(candidate.node.name), candidate.node, context.plan
    if wanted.kept_by:
        plan.pinned.add(name)
    storage, obstacle = storage_of(candidate, wanted, context.target)
    obstacle = wanted.kept_by or candidate.obstacle or _no_embedding(node) or obstacle
    if storage is None or obstacle:
        plan.kept_float.setdefault(name, obstacle)
        return
    plan.kept_float.pop(name, None)
    plan.units[name] = unit_of(candidate, storage, wanted, context.target)


def fits(storage: Storage, wanted: Wanted) -> bool:
    """Whether what is asked for can be stored so."""
    fmt = FORMATS[wanted.format]
    size = None if wanted.block_size == "channel" else wanted.block_size
    return (
        fmt in storage.formats
        and (wanted.block_size is None or size in storage.blocks)
        and (wanted.symmetric is None or not fmt.is_integer or wanted.symmetric in storage.symmetric)
        and (wanted.activations is None or any(f in storage.forms for f in _FORMS[wanted.activations]))
    )


def storage_of(candidate: Candidate, wanted: Wanted, target: Target) -> tuple[Storage | None, str]:
    """The first storage for a node that fits, or why there is none."""
    node, obstacle = candidate.node, ""
    for storage in target.storages:
        if node.op_type in storage.op_types and fits(storage, wanted):
            obstacle = storage.obstacle(node)
            if not obstacle:
                return storage, ""
    return None, obstacle or f"{target.name} stores no {wanted} of a {node.op_type}"


def _no_embedding(node: ir.Node) -> str:
    if node.op_type != "Gather" or looks_up_ids(node):
        return ""
    return "its rows are looked up by positions that the graph counts: the table is small and weighs on every layer"


def unit_of(candidate: Candidate, storage: Storage, wanted: Wanted, target: Target) -> Unit:
    """The unit of a layer whose weight is stored so."""
    forms = storage.forms if wanted.activations is None else _FORMS[wanted.activations]
    form = next(f for f in storage.forms if f in forms)
    unit = unit_reading_float(candidate, form, target)
    return replace(unit, weight_spec=_spec(candidate, storage, wanted), lowering=storage.lowering)


def _spec(candidate: Candidate, storage: Storage, wanted: Wanted) -> QuantSpec:
    node, row = candidate.node, candidate.row
    assert row.weight is not None
    assert row.weight_axis is not None
    weight, outputs = node.inputs[row.weight], row.weight_axis(node)
    assert weight is not None
    assert weight.shape is not None
    fmt = FORMATS[wanted.format]
    size = storage.blocks[0] if wanted.block_size is None else wanted.block_size
    symmetric = fmt.is_signed if wanted.symmetric is None else wanted.symmetric
    symmetric = symmetric or not fmt.is_integer
    grain: PerChannel | PerBlock = PerChannel(outputs)
    if isinstance(size, int):
        reduced = 1 - outputs
        depth = weight.shape.numpy()[reduced]
        holding = [b for b in storage.blocks if b is not None and b >= depth]
        grain = PerBlock(reduced, min([size, *holding]))
    return QuantSpec(
        fmt, grain, symmetric, full_range=storage.full_range and symmetric and fmt.is_signed, scales=storage.scales
    )
