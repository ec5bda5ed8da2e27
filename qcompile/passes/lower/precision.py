"""The float rest of the graph in float16 or bfloat16, where the target gains by it.

Inputs and outputs of the model keep their types; Casts stand at the borders of regions, as few as a minimum cut
finds (half/regions.py). What half precision would spoil stays float32: by rule (half/rules.py), by what constants
hold, and by what the held-out samples show of activations (half/ranges.py). Without samples only the rules hold,
and the report says so; bfloat16 has the range of float32 and needs none.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import name_of, nodes, opset
from qcompile.compiler.operators.definition import DOMAIN
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.stored_weights import restores
from qcompile.compiler.targets.half import Half
from qcompile.compiler.targets.table import Target
from qcompile.passes.lower.half.masks import bound_masks
from qcompile.passes.lower.half.operands import Operands, operands
from qcompile.passes.lower.half.ranges import observed_ranges
from qcompile.passes.lower.half.regions import activations, half_nodes
from qcompile.passes.lower.half.rewrite import Rewrite
from qcompile.passes.lower.half.rules import kept_nodes, kept_tensors
from qcompile.passes.quantize.keep_float import kept_by

_TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


class Precision(Pass):
    """Compute in half precision what the target computes faster so and what keeps its values."""

    name: ClassVar[str] = "precision"
    phase: ClassVar[Phase] = Phase.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    measures: ClassVar[bool] = True

    dtype: Literal["float16", "bfloat16", "float32"] | None = Field(
        default=None, description="type of what may leave float32; left out, the target's table says"
    )
    keep_float: tuple[str, ...] = Field(default=(), description="names (with * and ?) of nodes that stay float32")

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        half, dtype = context.target.half, self.type_on(context.target)
        if half.dtype is None and self.dtype in _TYPES:
            context.notice(f"the graph stays float32: {half.refusal}")
        if dtype is None:
            return False
        ranges = observed_ranges(model, activations(model), context)
        ranges, bounds = bound_masks(model, ranges, dtype, self.name)
        members, values = _members(model, half, dtype), activations(model)
        kept = kept_nodes(model, members, ranges, dtype) | dict.fromkeys(bounds, "it bounds a mask")
        kept |= {node: why for node in members if (why := kept_by(node, self.keep_float))}
        tensors = kept_tensors(values, ranges, dtype)
        chosen = half_nodes(model, members, kept, tensors)
        open_to_choice = {name_of(v) for v in values if v.producer() in members and v.producer() not in kept}
        rewrite = Rewrite(model, members, dtype, self.name)
        rewrite.run([node for node in members if node in chosen])
        if chosen:
            told = {name: why for name, why in tensors.items() if name in open_to_choice}
            self.report(context, dtype, len(chosen), rewrite.casts, told)
        return bool(chosen or bounds)

    def type_on(self, target: Target) -> ir.DataType | None:
        """What leaves float32 becomes this; None where nothing does."""
        wanted = _TYPES.get(self.dtype) if self.dtype else target.half.dtype
        return wanted if target.half.dtype is not None else None

    def report(
        self, context: CompileContext, dtype: ir.DataType, chosen: int, casts: int, tensors: dict[str, str]
    ) -> None:
        """Say what became half, and what the samples kept from it."""
        name = dtype.name.lower()
        context.notice(f"{chosen} operations compute in {name}, with {casts} Casts")
        if tensors:
            kept = "; ".join(f"'{tensor}' {why}" for tensor, why in list(tensors.items())[:3])
            more = ", ..." if len(tensors) > 3 else ""
            stay = "1 tensor stays" if len(tensors) == 1 else f"{len(tensors)} tensors stay"
            context.notice(f"{stay} float32 since {name} does not hold them: {kept}{more}")
        if not context.held_out and dtype is ir.DataType.FLOAT16:
            context.notice(
                "without samples nobody has looked whether activations fit into float16 (65504 at most): give some "
                "with --calib, or take bfloat16 with --set precision.dtype=bfloat16"
            )


def _members(model: ir.Model, half: Half, dtype: ir.DataType) -> dict[ir.Node, Operands]:
    """The nodes that exist in half precision on the target, all of whose types are known.

    What the runtime computes when it loads the model stays float32: the CPU does that, which has no half kernels.
    """
    version, kernels = opset(model), half.kernels.get(dtype, frozenset())
    found: dict[ir.Node, Operands] = {}
    for node in nodes(model):
        operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        if (operator not in kernels and node.domain != DOMAIN) or any(v.name and v.dtype is None for v in node.outputs):
            continue
        if restores(node):
            continue
        typed = operands(node, version, dtype)
        if typed is not None and (typed.inputs or typed.outputs):
            found[node] = typed
    return found
