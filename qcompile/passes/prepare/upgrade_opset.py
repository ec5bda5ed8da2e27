"""The model's opset is raised to what quantization needs."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.context import CompileContext
from qcompile.compiler.description import describe
from qcompile.compiler.graph import graphs, opset
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.provenance import SOURCE, stamp
from qcompile.errors import ModelError


class UpgradeOpset(Pass):
    """Convert the model to opset `minimum`, or to that of the target, where it is older, and raise its IR version.

    DequantizeLinear has an axis since opset 13; 17 brings LayerNormalization and is what every provider
    knows; QuantizeLinear reads float16 since 19. The ONNX version converter rewrites the operators whose
    definition changed.

    Raises:
        ModelError: the converter has no rule for one of the model's operators.
    """

    name: ClassVar[str] = "upgrade-opset"
    phase: ClassVar[Phase] = Phase.PREPARE
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    float_equivalent: ClassVar[bool] = True

    minimum: int = Field(default=17, ge=13, le=25, description="lowest opset of the default domain to accept")

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        minimum = max(self.minimum, context.target.opset)
        if not any(n.domain == "" for n in model.graph.all_nodes()):
            model.graph.opset_imports.setdefault("", minimum)
        modified = _raise_ir_version(model, max(minimum, opset(model)))
        if opset(model) >= minimum:
            return modified
        if model.functions:
            raise ModelError(
                "a model with functions cannot be converted to another opset",
                hint="put `inline-functions` before `upgrade-opset` in the recipe",
            )
        _convert(model, minimum)
        return True


def _raise_ir_version(model: ir.Model, version: int) -> bool:
    """The lowest IR version that may carry opset `version`."""
    from onnx import helper

    lowest = helper.find_min_ir_version_for([helper.make_opsetid("", version)])
    if (model.ir_version or 0) >= lowest:
        return False
    model.ir_version = lowest
    return True


def _convert(model: ir.Model, version: int) -> None:
    from onnx import version_converter

    was = opset(model)
    sources = {n.name: n.metadata_props.get(SOURCE) for n in model.graph.all_nodes() if n.name}
    proto, large = describe(model)
    try:
        converted = ir.from_proto(version_converter.convert_version(proto, version))
    except Exception as error:
        raise ModelError(
            f"the model cannot be converted from opset {was} to {version}: {_first_line(error)}",
            hint=f"export it again with opset {version} or higher",
        ) from error
    graph = converted.graph
    stand_ins = {v.name: v for v in graph.inputs}
    for value in large:
        weight = stand_ins[value.name]
        weight.const_value = value.const_value
        if value not in model.graph.inputs:
            graph.inputs.remove(weight)
        graph.register_initializer(weight)
    model.graph = graph
    _stamp(model, sources)


def _stamp(model: ir.Model, sources: dict[str, str | None]) -> None:
    """Kept nodes get their sources back (the converter drops metadata); what an adapter added
    stands for the node that reads it."""
    for graph in graphs(model):
        for node in reversed(graph):
            source = sources.get(node.name or "")
            if source:
                node.metadata_props[SOURCE] = source
            else:
                stamp(node, UpgradeOpset.name, [n for v in node.outputs for n in v.consumers()])
                node.name = node.name or f"{node.op_type}_{node.outputs[0].name}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
