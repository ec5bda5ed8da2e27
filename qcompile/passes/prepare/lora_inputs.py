"""Layers take LoRA adapters when they run: their matrices are inputs of the model, zero unless a run is given others.

    y = x W + b + (x A) B        A: [K, r], B: [r, N];  r is free and may differ from run to run

One copy of the base, in whatever format the recipe gives it, then serves many adapters; with NF4 that is QLoRA's form.
The layers are those that the given adapters were trained for. Convolutions and tables do the same with operators of
their own (compiler/lora/ports.py). All of the branch stays float, since nothing is known of what a run will bring.
Source: Hu et al., "LoRA", 2021; Dettmers et al., "QLoRA", 2023, equation 5.

Errors: DataError naming the modules that have no layer in the model, or one of another shape; adapters with magnitudes
(DoRA) or with tensors trained whole, which are no sums.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field, field_serializer

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import add_initializer, is_constant
from qcompile.compiler.lora.adapter import Update, read_adapter
from qcompile.compiler.lora.names import renamed
from qcompile.compiler.lora.places import Place, Places, check_channels, check_shapes, places
from qcompile.compiler.lora.ports import DOWN, UP, check_low_rank, parameters
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.provenance import stamp
from qcompile.errors import RecipeError
from qcompile.passes.prepare.surgery import Names, sole_reader


class LoraInputs(Pass):
    """Give the layers of some adapters inputs for their matrices."""

    name: ClassVar[str] = "lora-inputs"
    phase: ClassVar[Phase] = Phase.PREPARE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    float_equivalent: ClassVar[bool] = True

    adapters: tuple[str, ...] = Field(
        default=(), description="folders that PEFT's save_pretrained wrote; their layers become adaptable"
    )
    names: tuple[str, ...] = Field(
        default=(),
        description="which module is which layer where names differ, such as `encoder.{}.query=blk.{}.attn_q`",
    )

    @field_serializer("adapters")
    def _without_folders(self, adapters: tuple[str, ...]) -> list[str]:
        return [Path(adapter).name for adapter in adapters]

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        if not self.adapters:
            raise RecipeError("lora-inputs has no adapter", hint=f"--set {self.name}.adapters='[FOLDER]'")
        known, names = Places(places(model)), Names(model)
        chosen: dict[Place, Update] = {}
        for adapter in renamed([read_adapter(Path(folder)) for folder in self.adapters], self.names):
            check_low_rank(adapter)
            own = known.of(adapter)
            check_shapes(adapter, own)
            check_channels(adapter, {module: place.node for module, place in own.items()})
            for module, place in own.items():
                chosen.setdefault(place, adapter.updates[module])
        for place, update in chosen.items():
            _Branch(place, update, names, self.name).add(model.graph, context)
        context.notice(f"{len(chosen)} layers take adapters as inputs")
        return True


class _Branch:
    """(x A) B beside one layer, in operators of its kind."""

    def __init__(self, place: Place, update: Update, names: Names, made_by: str) -> None:
        self.place, self.node, self.update = place, place.node, update
        self.names, self.made_by = names, made_by
        self.convolution = self.node.op_type == "Conv"
        self.rank = f"{update.module}.rank"

    def add(self, main: ir.Graph, context: CompileContext) -> None:
        rank_first, rank_last = (0, 1) if self.convolution else (1, 0)
        down_shape, up_shape = (array.shape for array in parameters(self.update))
        down = self.port(main, DOWN, down_shape, rank_first)
        up = self.port(main, UP, up_shape, rank_last)
        last = _with_bias(self.node)
        result, x = last.outputs[0], self.node.inputs[1 - self.place.position]
        assert x is not None
        narrow = self.narrow(x, down)
        wide = self.made("Conv" if self.convolution else "MatMul", [narrow.outputs[0], up], UP, result)
        total = self.made("Add", [result, wide.outputs[0]], ".lora", result)
        for value in (wide.outputs[0], total.outputs[0]):
            value.shape = result.shape
        result.replace_all_uses_with(total.outputs[0], replace_graph_outputs=True)
        total.replace_input_with(0, result)
        name = str(result.name)
        result.name, total.outputs[0].name = self.names.fresh(f"{name}_base"), name
        graph = last.graph
        assert isinstance(graph, ir.Graph)
        graph.insert_after(last, [narrow, wide, total])
        for node in (narrow, wide, total):
            context.plan.pin(str(node.name), "it belongs to an adapter, which comes with each run")

    def narrow(self, x: ir.Value, down: ir.Value) -> ir.Node:
        """The product with A, of r columns."""
        like = self.node.outputs[0]
        if self.place.table:
            made = self.made("Gather", [down, x], DOWN, like)
        else:
            made = self.made("Conv" if self.convolution else "MatMul", [x, down], DOWN, like)
        if self.convolution:
            made.attributes.update({name: a for name, a in self.node.attributes.items() if name != "group"})
        if like.shape is not None:
            columns = 1 if self.convolution else len(like.shape) - 1
            rank = ir.SymbolicDim(self.rank)
            made.outputs[0].shape = ir.Shape([rank if i == columns else d for i, d in enumerate(like.shape)])
        return made

    def port(self, main: ir.Graph, suffix: str, shape: tuple[int, ...], rank: int) -> ir.Value:
        """An input of the model whose default is zeros of rank 1: not every provider takes tensors without elements.

        Each layer has a symbol of its own for the rank: tensors of one symbol may get the same memory.
        """
        name, dtype = self.update.module + suffix, self.place.weight.dtype
        assert dtype is not None
        zeros = np.zeros([1 if i == rank else d for i, d in enumerate(shape)], dtype.numpy())
        symbols = [self.rank if i == rank else d for i, d in enumerate(shape)]
        value = add_initializer(main, name, zeros, dtype)
        value.shape = ir.Shape(symbols)
        main.inputs.append(value)
        return value

    def made(self, op_type: str, inputs: list[ir.Value], suffix: str, like: ir.Value) -> ir.Node:
        node = ir.node(op_type, inputs, name=self.names.fresh(f"{self.node.name}{suffix}"))
        node.outputs[0].name, node.outputs[0].type = self.names.fresh(f"{node.name}_output"), like.type
        stamp(node, self.made_by, [self.node])
        return node


def _with_bias(node: ir.Node) -> ir.Node:
    """The Add of a constant that alone reads the layer, or the layer."""
    add = sole_reader(node.outputs[0])
    follows = add is not None and add.op_type == "Add" and any(map(is_constant, add.inputs))
    return add if follows and add is not None else node
