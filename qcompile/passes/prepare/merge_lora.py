"""A LoRA adapter goes into the weights of the layers it was trained for.

    W' = W + s B A        compiler/lora/adapter.py has the kinds of adapters

W: [N, K], A: [r, K], B: [N, r], in float32 and then in the type of the weight. Biases and whole modules that were
trained beside take the place of those of the model. A weight that others read too is untied first: they keep theirs.
Source: Hu et al., "LoRA", 2021, section 4.1 ("no additional inference latency").

Errors: DataError naming the modules or tensors of the adapter that have no layer in the model, more than one, or one of
another shape. Nothing is merged then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field, field_serializer

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant, is_constant
from qcompile.compiler.lora.adapter import Adapter, Floats, Update, read_adapter
from qcompile.compiler.lora.names import NAMES_DIFFER, renamed
from qcompile.compiler.lora.places import (
    NOTHING,
    Place,
    Places,
    check_channels,
    check_shapes,
    in_common,
    listed,
    parts,
    places,
)
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.reporting.wording import count
from qcompile.errors import DataError, RecipeError
from qcompile.passes.prepare.surgery import Names, sole_reader
from qcompile.passes.prepare.untie import set_constant


class MergeLora(Pass):
    """Add an adapter to the weights of the model."""

    name: ClassVar[str] = "merge-lora"
    phase: ClassVar[Phase] = Phase.PREPARE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES})
    changes_function: ClassVar[bool] = True

    adapter: str = Field(default="", description="the folder that PEFT's save_pretrained wrote")
    names: tuple[str, ...] = Field(
        default=(),
        description="which module is which layer where names differ, such as `encoder.{}.query=blk.{}.attn_q`",
    )

    @field_serializer("adapter")
    def _without_folder(self, adapter: str) -> str:
        return Path(adapter).name

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        if not self.adapter:
            raise RecipeError("merge-lora has no adapter", hint=f"--set {self.name}.adapter=FOLDER")
        [adapter] = renamed([read_adapter(Path(self.adapter))], self.names)
        known, names = Places(places(model)), Names(model)
        chosen = known.of(adapter)
        check_shapes(adapter, chosen)
        trained = {name: _Trained.find(name, array, adapter, known, model) for name, array in adapter.trained.items()}
        if missing := [name for name, found in trained.items() if found is None]:
            raise DataError(
                f"{len(missing)} of {len(trained)} tensors that the adapter holds whole have no place of their own "
                f"and of their shape in the model: {listed(missing)}",
                where=self.adapter,
                hint=NAMES_DIFFER,
            )
        changed = {module: place.node for module, place in chosen.items()}
        check_channels(adapter, changed | {name: found.node for name, found in trained.items() if found is not None})
        changes = [merge_update(chosen[module], update, names) for module, update in adapter.updates.items()]
        for found in trained.values():
            assert found is not None
            found.put(names)
        whole = f"; {len(trained)} tensors replaced" if trained else ""
        size = np.mean([change.size for change in changes]) if changes else 0
        amount = f" (rank {adapter.ranks}), by {size:.2%} of their norm on average" if changes else ""
        context.notice(f"adapter '{adapter.name}': {count(len(changes), 'layer')} updated{amount}{whole}")
        if any(change.fills for change in changes):
            context.notice(filled(changes))
        return True


@dataclass(frozen=True)
class Change:
    """What an update did to a weight.

    Attributes:
        size: its norm beside that of the weight.
        fills: the weight was pruned, and is no longer.
    """

    size: float
    fills: bool

    @classmethod
    def of(cls, old: Floats, new: Floats) -> Change:
        size = np.linalg.norm(new - old) / max(np.linalg.norm(old), np.finfo(np.float32).tiny)
        zeros = float((old == 0).mean())
        return cls(float(size), zeros > _PRUNED and float((new == 0).mean()) < zeros / 2)


_PRUNED = 0.25
"""A weight with a larger share of zeros was pruned."""


def filled(changes: Sequence[Change]) -> str:
    """What there is to say of weights that were pruned."""
    layers = count(sum(change.fills for change in changes), "pruned layer")
    return f"the adapter fills the zeros of {layers}: merge it before pruning"


def merge_update(place: Place, update: Update, names: Names) -> Change:
    """Add the update to a weight.

    Raises:
        DataError: the sum is too large for the type of the weight.
    """
    stored = constant(place.weight)
    assert stored is not None
    weight = stored.astype(np.float32)
    old = weight.T if place.inputs_first else weight
    new = update.applied(old)
    with np.errstate(over="ignore"):
        layout = (new.T if place.inputs_first else new).astype(stored.dtype)
    if not np.isfinite(layout.astype(np.float32)).all():
        raise DataError(f"module '{update.module}' makes the weight of layer {place} infinite in {stored.dtype}")
    set_constant(place.node, place.position, layout, names)
    return Change.of(old, new)


class _Trained:
    """A whole tensor of the adapter, and the input of a node that it takes the place of."""

    def __init__(self, node: ir.Node, position: int, array: Floats) -> None:
        self.node, self.position, self.array = node, position, array

    @classmethod
    def find(cls, name: str, array: Floats, adapter: Adapter, known: Places, model: ir.Model) -> _Trained | None:
        """Where `array` belongs: the weight or bias of a layer called after its module, or a constant of its name."""
        module, _, leaf = name.rpartition(".")
        for place in known.alone(module):
            if leaf == "weight" and array.ndim > 1:
                outputs_first = array.T if adapter.inputs_first and place.inputs_first else array
                if outputs_first.shape == place.shape:
                    layout = outputs_first.T if place.inputs_first else outputs_first
                    return cls(place.node, place.position, layout)
            if leaf == "bias" and (at := _bias(place.node)) and _shape(*at) == array.shape:
                return cls(*at, array)
        wanted = parts(name)
        fitting = [v for v in model.graph.initializers.values() if v.uses() and v.shape == ir.Shape(array.shape)]
        common = {value: in_common(wanted, parts(value.name or "")) for value in fitting}
        most = max(common.values(), default=NOTHING)
        uses = [use for value, found in common.items() if found == most for use in value.uses()]
        if len(uses) == 1 and (most[0] > 1 or most[1]):
            return cls(uses[0].node, uses[0].idx, array)
        return None

    def put(self, names: Names) -> None:
        old = self.node.inputs[self.position]
        assert old is not None
        dtype = old.dtype.numpy() if old.dtype is not None else np.float32
        set_constant(self.node, self.position, self.array.astype(dtype), names)


def _bias(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Who reads the bias of a layer, and as which input."""
    if len(node.inputs) > 2 and is_constant(node.inputs[2]):
        return node, 2
    add = sole_reader(node.outputs[0])
    if add is None or add.op_type != "Add":
        return None
    position = next((i for i, value in enumerate(add.inputs) if is_constant(value)), None)
    return None if position is None else (add, position)


def _shape(node: ir.Node, position: int) -> tuple[int, ...] | None:
    value = node.inputs[position]
    return value.shape.numpy() if value is not None and value.shape is not None else None
