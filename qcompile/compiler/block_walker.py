"""A model block by block, for methods that go through its layers in order.

    for visit in BlockWalker(model, context, samples):
        ...  read what enters and leaves the block, change the plan or the weights of `model`

Each block is run on what the blocks before it gave, twice: in float, and as the plan and the weights now stand.
So the whole walk costs as much as running the model twice, however many layers a method looks at, and holds
one block in memory: weights are read from the model's files when a block is run. Activations that a later
block reads are kept, on the device, in memory or on disk (activation_store.py), the others dropped. All arrays
that a visit hands out lie on the device of the context: there the method computes, and there a session reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.compiler.activation_store import ActivationStore
from qcompile.compiler.blocks import Block, cut, cut_in_waves, depths, extract
from qcompile.compiler.context import CompileContext, Sample
from qcompile.compiler.graph import name_of, nodes
from qcompile.compiler.passes import Pass
from qcompile.compiler.plan import Form, QuantPlan, Unit
from qcompile.compiler.serialization import runnable
from qcompile.compiler.simulation import lowered_copy
from qcompile.compiler.walk_checkpoint import WalkCheckpoint
from qcompile.runtime.arrays import dtype_name
from qcompile.runtime.calibration import run_samples
from qcompile.runtime.device import Device
from qcompile.runtime.memory import free_bytes
from qcompile.runtime.providers import session_entries

Array = Any  # numpy.ndarray or torch.Tensor
Arrays = Mapping[str, Array]

MEMORY = 1 << 30
"""Bytes of activations that are held in memory, at most."""

_SHARE = 4
"""Of the memory that is free, on the device too, activations take one part in so many."""


class BlockWalker:
    """Visits the blocks of `model` in order, carrying the activations of `samples` along.

    Args:
        method: the pass that walks, for the progress and for a checkpoint of its own.
        memory: bytes of activations that are held in memory; the others are written to a temporary folder.
        in_waves: names of layers; blocks are cut further, in front of each wave of them that do not read each other:
            what these read enters the block, and is at hand without another run. Their weights may be edited.
        with_float: the float model runs along; without it the walk costs one run, and what a visit has of the
            float model is missing.
    """

    def __init__(
        self,
        model: ir.Model,
        context: CompileContext,
        samples: Iterable[Sample],
        *,
        method: Pass | None = None,
        memory: int = MEMORY,
        in_waves: Collection[str] = frozenset(),
        with_float: bool = True,
    ) -> None:
        self.model, self.context, self.samples = model, context, samples
        self.method, self.memory, self.with_float = method, memory, with_float
        self.layers = frozenset(in_waves)
        self.blocks = cut(model, context.target)
        if in_waves:
            self.blocks = cut_in_waves(model, self.blocks, self.layers)

    def __iter__(self) -> Iterator[Visit]:
        """The visits. When the loop goes on to the next, the activations are carried over the block."""
        progress = self.context.progress
        checkpoint = WalkCheckpoint(self.model, self.context, self.method, self.layers)
        progress.start(f"{self.method.name if self.method else 'walking'}, block by block", len(self.blocks))
        try:
            device = self.context.device
            on_device = 0 if device is Device.CPU else device.free_bytes() // _SHARE
            with ActivationStore(min(self.memory, free_bytes() // _SHARE), device, on_device) as store:
                walk = _Walk(self.model, self.context, store, checkpoint, self.layers, self.with_float)
                walk.enter(self.samples, self._read_from(0))
                for i, block in enumerate(self.blocks):
                    visit = walk.visit(i, block)
                    yield visit
                    walk.carry(visit, self._read_from(i + 1))
                    progress.advance()
        finally:
            progress.finish()

    def _read_from(self, index: int) -> set[str]:
        """What the blocks from `index` on read of those before and of the samples."""
        return {name for block in self.blocks[index:] for name in block.inputs}


@dataclass
class _Walk:
    """The state of one walk: the activations at the frontier, in float and in the quantized prefix."""

    model: ir.Model
    context: CompileContext
    store: ActivationStore
    checkpoint: WalkCheckpoint
    layers: frozenset[str]
    with_float: bool
    count: int = 0
    types: dict[str, ir.DataType] = field(default_factory=dict)

    def enter(self, samples: Iterable[Sample], wanted: Collection[str]) -> None:
        for i, sample in enumerate(samples):
            self.keep({name: array for name, array in sample.items() if name in wanted}, i)
            self.count = i + 1

    def keep(self, arrays: Arrays, sample: int, prefix: str = "") -> None:
        for name, array in arrays.items():
            self.types.setdefault(name, ir.DataType.from_numpy(np.dtype(dtype_name(array))))
            self.store.put(prefix + name, sample, array)

    def visit(self, index: int, block: Block) -> Visit:
        visit = Visit(index, block, self)
        if self.with_float:
            for i, outputs in enumerate(visit.run_float(visit.model, visit.float_inputs)):
                self.keep(outputs, i)
        return visit

    def carry(self, visit: Visit, wanted: Collection[str]) -> None:
        """Run the quantized block where it differs from the float one, and drop what no later block reads."""
        block, prefix = visit.block, _QUANTIZED if self.with_float else ""
        if not set(wanted).isdisjoint(block.outputs) and (not self.with_float or self.differs(visit)):
            for i, outputs in enumerate(visit.now()):
                self.keep({name: array for name, array in outputs.items() if name in wanted}, i, prefix)
        for name in {*block.inputs, *block.outputs}.difference(wanted):
            self.store.drop(name)
            self.store.drop(_QUANTIZED + name)

    def differs(self, visit: Visit) -> bool:
        """Whether the quantized block, or what enters it, is another than in float."""
        changed = self.layers.union(self.context.plan.units)
        low = any(node.name in changed for node in nodes(visit.model))
        return low or any(_QUANTIZED + name in self.store for name in visit.block.inputs)

    def extract(self, inputs: Sequence[str], outputs: Sequence[str], model: ir.Model | None = None) -> ir.Model:
        """A part of the model whose inputs have the types that were seen."""
        part = extract(model or self.model, inputs, outputs)
        for value in part.graph.inputs:
            if value.type is None:
                value.type = ir.TensorType(self.types[name_of(value)])
        return part


_QUANTIZED = "quantized "
"""Begins the keys of activations of the quantized prefix that differ from the float ones."""

_LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


@dataclass(frozen=True)
class Visit:
    """One block with what enters and leaves it.

    Attributes:
        index: the number of the block.
    """

    index: int
    block: Block
    _walk: _Walk

    @cached_property
    def model(self) -> ir.Model:
        """The block alone, in float; names as in the whole model."""
        return self._walk.extract(self.block.inputs, self.block.outputs)

    @property
    def count(self) -> int:
        """How many samples there are."""
        return self._walk.count

    @property
    def device(self) -> Device:
        """Where the arrays of this visit lie."""
        return self._walk.context.device

    @property
    def results(self) -> list[str]:
        """The floating-point outputs by which the block is judged: those that later blocks read, or all where no
        block does. A cache of keys and values is returned, but what it does is done inside the block."""
        names = self.block.carried or self.block.outputs
        return [
            n
            for v in self.model.graph.outputs
            if (n := name_of(v)) in names and (v.dtype is None or v.dtype.is_floating_point())
        ]

    @property
    def float_inputs(self) -> Activations:
        """What enters the block of the float model: a dict for each sample."""
        return Activations(self._walk.store, self.block.inputs, self._walk.count)

    @property
    def inputs(self) -> Activations:
        """What the blocks before give as the plan and the weights now stand."""
        return Activations(self._walk.store, self.block.inputs, self._walk.count, _QUANTIZED)

    @property
    def float_outputs(self) -> Activations:
        """What the float model has behind the block."""
        return Activations(self._walk.store, self.block.outputs, self._walk.count)

    def run(self, model: ir.Model, feeds: Iterable[Arrays]) -> Iterator[dict[str, Array]]:
        """The outputs of any model on `feeds`, lazily, sample after sample, as the target computes them."""
        return self._run(model, feeds, self._walk.context.target.providers)

    def run_float(self, model: ir.Model, feeds: Iterable[Arrays]) -> Iterator[dict[str, Array]]:
        """Those of a model in float, which may run on the device whatever the target."""
        return self._run(model, feeds, self._walk.context.float_providers)

    def _run(self, model: ir.Model, feeds: Iterable[Arrays], providers: tuple[str, ...]) -> Iterator[dict[str, Array]]:
        names = [name_of(v) for v in model.graph.outputs]
        with runnable(model) as data:
            for outputs in run_samples(data, feeds, providers, session_entries(providers[0]), self.device):
                yield dict(zip(names, outputs, strict=True))

    def now(self) -> Iterator[dict[str, Array]]:
        """What the block gives as the plan and the weights now stand; in float before there is a plan."""
        return self._run_now(self._walk.extract(self.block.inputs, self.block.outputs), self.inputs)

    def lowered(self) -> ir.Model:
        """The block as the plan and the weights now stand, lowered."""
        part = self._walk.extract(self.block.inputs, self.block.outputs)
        return lowered_copy(part, self._walk.context)

    def waves(self) -> list[list[Unit]]:
        """The block's convolutions and linear layers in low precision, in the order in which they can be treated:
        no unit of a wave reads what another of the same wave computes. Bodies of control flow are left out,
        and so is what nothing reads."""
        units = layers_in_low_precision(self._walk.context)
        found: dict[int, list[Unit]] = {}
        for node, depth in depths(self.model.graph, units).items():
            if node.name in units:
                found.setdefault(depth, []).append(units[node.name])
        return [found[depth] for depth in sorted(found)]

    def float_values(self, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Values inside the float block, or at its entrance, for each sample."""
        return self._inner(names, self.model, self.float_inputs, self.run_float)

    def values(self, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Values inside the block as the plan and the weights now stand, in float before there is a plan."""
        return self._inner(names, self._walk.model, self.inputs, self._run_now)

    def products(self, units: Sequence[Unit]) -> Iterator[dict[str, Array]]:
        """What units of the block compute before their activation and the rounding of their own output, by the name
        of that value, for each sample; everything before them as the plan and the weights now stand."""
        plan = self._walk.context.plan
        model = self._walk.model
        raw = {u.node: replace(u, form=_open(u), activation=None, output=product_of(u, model)) for u in units}
        opened = replace(plan, units=plan.units | raw)
        names = [unit.output for unit in raw.values()]
        return self._inner(names, model, self.inputs, partial(self._run_lowered, plan=opened))

    def _run_now(self, part: ir.Model, feeds: Iterable[Arrays]) -> Iterator[dict[str, Array]]:
        return self._run_lowered(part, feeds) if self._walk.context.plan.units else self.run_float(part, feeds)

    def _run_lowered(
        self, part: ir.Model, feeds: Iterable[Arrays], plan: QuantPlan | None = None
    ) -> Iterator[dict[str, Array]]:
        return self.run(lowered_copy(part, self._walk.context, plan), feeds)

    def _inner(
        self,
        names: Sequence[str],
        model: ir.Model,
        feeds: Activations,
        run: Callable[[ir.Model, Iterable[Arrays]], Iterator[dict[str, Array]]],
    ) -> Iterator[dict[str, Array]]:
        inner = [n for n in dict.fromkeys(names) if n not in self.block.inputs]
        if not inner:
            yield from ({n: feed[n] for n in names} for feed in feeds)
            return
        part = self._walk.extract(self.block.inputs, inner, model)
        for feed, found in zip(feeds, run(part, feeds), strict=True):
            yield {n: found[n] if n in found else feed[n] for n in names}

    def once(self, work: Callable[[], Arrays]) -> Arrays:
        """The arrays that `work` returns, or that it returned for this block in a run that was interrupted.

        A method that keeps to `edits = visit.once(...)` and then applies the edits can be resumed.
        """
        return self._walk.checkpoint.once(self.index, work)


@dataclass(frozen=True)
class Activations:
    """One dict of arrays by value name for each sample; can be walked more than once."""

    store: ActivationStore
    names: Sequence[str]
    count: int
    prefix: str = ""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, sample: int) -> dict[str, Array]:
        keys = {name: self.prefix + name if self.prefix + name in self.store else name for name in self.names}
        return {name: self.store.get(key, sample) for name, key in keys.items()}

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return map(self.__getitem__, range(self.count))


def product_of(unit: Unit, model: ir.Model) -> str:
    """The name of what a unit computes before its Relu or Clip: with its bias, in float."""
    if unit.activation is None:
        return unit.output
    node = next(n for n in nodes(model) if n.name == unit.activation)
    assert node.inputs[0] is not None
    return name_of(node.inputs[0])


def layers_in_low_precision(context: CompileContext) -> dict[str, Unit]:
    """The convolutions and linear layers in low precision, by node name."""
    return {n: u for n, u in context.plan.units.items() if u.op_type in _LINEAR and u.weight is not None}


def _open(unit: Unit) -> Form:
    return Form.INPUTS if unit.form is Form.FULL else unit.form
