"""Take out filters, neurons and attention heads until a share of the work is gone, and let the rest make good for them.

    1. importance of every channel                               pruning/block_loss.py, importance.py, first_order.py
    2. the cheapest for the work that they save go first         pruning/budget.py
    3. the layers that read them are solved anew, in order       recovery.py
           V = argmin E||V (x~_kept - E x~_kept) - W (x - E x)||^2,   b~ = b + W E x - V E x~_kept
    4. their weights, and all that hangs on them, get narrower   channels/remove.py

x: what the layer reads in the float model, x~: in the pruned one. Without `refit` V is W and the bias alone makes good
for the mean of what is gone. W: [N, K]; budgets count the multiply-accumulates of convolutions and matrix products on
the first calibration sample, channels, or measured time.
Source: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", 2022 (search, then least squares); He et
al., "Channel Pruning for Accelerating Very Deep Neural Networks", 2017 (refit of the layer that reads).

Errors: DataError without samples; RecipeError where the budget cannot be met; for importance `taylor` those of
pruning/first_order.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant, name_of
from qcompile.compiler.layer_grams import LayerInputs
from qcompile.compiler.linear_layers import LinearLayer, linear_layers
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.refit import summary
from qcompile.compiler.tensor_shapes import shapes_of
from qcompile.errors import RecipeError
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.transform.channels.group import ChannelGroup, Kind
from qcompile.passes.transform.channels.remove import remove
from qcompile.passes.transform.channels.search import channel_groups
from qcompile.passes.transform.layer_walk import Wave, walk_layers
from qcompile.passes.transform.pruning.block_loss import block_losses
from qcompile.passes.transform.pruning.budget import Prunable, Step, gone, ranked, shortest
from qcompile.passes.transform.pruning.columns import refitted, without
from qcompile.passes.transform.pruning.first_order import Place, first_order
from qcompile.passes.transform.pruning.importance import magnitude
from qcompile.passes.transform.pruning.latency import race
from qcompile.passes.transform.pruning.macs import Macs, operands
from qcompile.passes.transform.recovery import Recovery, write

Gone = Mapping[int, npt.NDArray[np.intp]]
"""The channels that go, by the number of their group."""


class PruneChannels(Pass):
    """Take out the filters, neurons and heads that matter least for the work that they cost."""

    name: ClassVar[str] = "prune-channels"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})
    changes_function: ClassVar[bool] = True
    measures: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = True

    remove: float = Field(default=0.25, gt=0, lt=1, description="share of the budget that goes")
    budget: Literal["flops", "latency", "ratio"] = Field(
        default="flops",
        description="what `remove` is a share of: all multiply-accumulates, time measured on this machine, or the "
        "channels of every group",
    )
    importance: Literal["activation", "magnitude", "taylor"] = Field(
        default="activation",
        description="what a channel is worth by: what its block loses without it, its weights, or how it moves the "
        "answers of the model (needs torch)",
    )
    keep: float = Field(default=0.2, gt=0, le=1, description="share of every group that stays in any case")
    multiple: int = Field(
        default=16, ge=1, description="so many filters or neurons stay, or a multiple: as kernels take them at a time"
    )
    refit: bool = Field(default=True, description="solve what is left of the layers behind anew, by least squares")
    mask: str | None = Field(
        default=None, description="name of a model input that is 1 where a position counts, such as `attention_mask`"
    )

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        inputs = LayerInputs.of(self.name, self.mask, model, context)
        groups = self.groups(model, context)
        if not groups:
            context.notice(f"{self.name}: no channels can be removed from this model")
            return False
        macs = Macs.of(model, [g.channels for g in groups], self.shapes(model, context))
        prunable = [
            self.prunable(group.channels, importance, macs.saved(i))
            for i, (group, importance) in enumerate(zip(groups, self.worth(groups, model, inputs), strict=True))
        ]
        chosen = self.chosen(ranked(prunable), groups, macs, model, context)
        if not chosen:
            context.notice(f"{self.name}: groups of {self.multiple} channels are too many for {self.remove:.0%}")
            return False
        self.make_good(groups, chosen, model, inputs)
        found = channel_groups(model)  # biases were added
        remove(model, {found[groups[i].number]: channels for i, channels in chosen.items()}, self.name)
        context.notice(self.summary(groups, chosen, macs))
        return True

    def groups(self, model: ir.Model, context: CompileContext) -> list[_Group]:
        """The groups whose readers can be solved anew."""
        layers, _ = linear_layers(model)
        by_name = {layer.name: layer for layer in layers}
        found, refused = [], []
        for number, group in enumerate(channel_groups(model)):
            parts = list(group.readers)
            if all(part.node in by_name and part.index == 1 for part in parts) and parts:
                columns = {part.node: _columns(by_name[part.node], part.channels) for part in parts}
                found.append(_Group(number, group, {part.node: by_name[part.node] for part in parts}, columns))
            else:
                refused.append(group.name)
        if refused:
            context.notice(
                f"{self.name}: the channels of {', '.join(refused[:3])}{', ...' if len(refused) > 3 else ''} stay: "
                "what reads them is no linear layer with a weight of its own"
            )
        return found

    def shapes(self, model: ir.Model, context: CompileContext) -> Mapping[str, tuple[int, ...]]:
        assert context.calibration is not None
        return shapes_of(operands(model), model, next(iter(context.calibration)), context.target.providers)

    def prunable(self, group: ChannelGroup, importance: npt.NDArray[np.float64], saved: float) -> Prunable:
        """`group` with what it may lose; of channels that make up a whole tensor the best one stays."""
        worth = importance.copy()
        for together in group.together:
            worth[max(together, key=lambda channel: importance[channel])] = np.inf
        least = max(int(np.ceil(self.keep * group.size)), int(np.isinf(worth).sum()))
        return Prunable(worth, saved, 1 if group.kind is Kind.HEADS else self.multiple, least)

    def worth(
        self, groups: Sequence[_Group], model: ir.Model, inputs: LayerInputs
    ) -> Sequence[npt.NDArray[np.float64]]:
        """The importance of the channels of each group."""
        context = inputs.context
        match self.importance:
            case "magnitude":
                by_name = {str(node.name): node for node in model.graph}
                return [magnitude(_slices(group.channels, by_name), group.channels.size) for group in groups]
            case "taylor":
                places = [place for i, group in enumerate(groups) for place in group.places(i)]
                sizes = [group.channels.size for group in groups]
                device = context.device.in_torch
                return first_order(model, places, sizes, inputs.samples, context.seed, device)
            case "activation":
                return self.losses(groups, model, inputs)

    def losses(
        self, groups: Sequence[_Group], model: ir.Model, inputs: LayerInputs
    ) -> Sequence[npt.NDArray[np.float64]]:
        """What the blocks of the readers of each group lose with a channel, summed over the readers."""
        readers = {name: layer for group in groups for name, layer in group.readers.items()}
        reading = {name: [i for i, group in enumerate(groups) if name in group.columns] for name in readers}
        columns = {name: [groups[i].columns[name] for i in numbers] for name, numbers in reading.items()}
        found = [np.zeros(group.channels.size) for group in groups]
        for name, own in block_losses(list(readers.values()), columns, model, inputs, by=self).items():
            for i, loss in zip(reading[name], own, strict=True):
                found[i][: loss.size] += loss
        return found

    def chosen(
        self, order: Sequence[Step], groups: Sequence[_Group], macs: Macs, model: ir.Model, context: CompileContext
    ) -> Gone:
        """The channels that go."""
        if self.budget == "ratio":
            return gone(_up_to(order, [self.remove * group.channels.size for group in groups]))
        with ExitStack() as stack:
            if self.budget == "latency":
                assert context.calibration is not None
                sample, provider = next(iter(context.calibration)), context.target.providers[0]
                watch = stack.enter_context(race(model, sample, provider))

                def share(goes: Gone) -> float:
                    pruned = model.clone()
                    remove(pruned, {groups[i].channels: channels for i, channels in goes.items()}, self.name)
                    return watch.saved(pruned)
            else:
                whole = macs.total({})

                def share(goes: Gone) -> float:
                    return 1 - macs.total(goes) / whole

            found = shortest(order, lambda steps: share(gone(steps)) >= self.remove)
            if found is None:
                raise RecipeError(
                    f"{self.name} cannot remove {self.remove:.0%} of the {_WORDS[self.budget]}: all channels that may "
                    f"go take {share(gone(order)):.0%}",
                    hint="lower remove, keep or multiple",
                )
            if self.budget == "latency":
                saved = share(gone(found))  # what decided may have been a lucky turn
                context.notice(
                    f"{self.name}: {saved:.0%} of the time on the first sample are saved, measured once more on this "
                    f"machine; {self.remove:.0%} were asked for"
                )
        return gone(found)

    def make_good(self, groups: Sequence[_Group], chosen: Gone, model: ir.Model, inputs: LayerInputs) -> None:
        """Let the layers behind do without the channels: their columns become zero, the others and the bias are
        solved anew."""
        idle: dict[str, npt.NDArray[np.bool_]] = {}
        layers: dict[str, LinearLayer] = {}
        for i, channels in chosen.items():
            for name, layer in groups[i].readers.items():
                layers[name] = layer
                idle[name] = idle.get(name, False) | np.isin(groups[i].columns[name], channels)
        names = Names(model)
        errors: dict[str, tuple[float, float]] = {}
        for wave in walk_layers(list(layers.values()), model, inputs.context, inputs, method=self, with_float=True):
            work = partial(self.solved, wave, idle, inputs.context)
            found = wave.once(work)
            if any(found[layer.name][:, :, idle[layer.name]].any() for layer in wave.layers):
                found = work()  # an interrupted run chose otherwise: by times that it had measured
            errors |= {layer.name: write(layer, found, names, self.name) for layer in wave.layers}
        if self.refit:
            inputs.context.notice(summary(self.name, errors))

    def solved(
        self, wave: Wave, idle: Mapping[str, npt.NDArray[np.bool_]], context: CompileContext
    ) -> dict[str, npt.NDArray[Any]]:
        """What becomes of each layer of a wave."""
        found: dict[str, npt.NDArray[Any]] = {}
        for layer in wave.layers:
            kept = np.flatnonzero(~idle[layer.name])
            weight = context.device.put(layer.matrix())
            solve = partial(refitted, weight, kept=kept) if self.refit else None
            recovery = Recovery.of(weight, without(weight, kept), wave.gram(layer), refitted=solve, bias=True)
            found |= recovery.arrays(layer.name)
        return found

    def summary(self, groups: Sequence[_Group], chosen: Gone, macs: Macs) -> str:
        parts = []
        for kind in dict.fromkeys(group.channels.kind for group in groups):
            members = [i for i, group in enumerate(groups) if group.channels.kind is kind]
            left = sum(len(chosen.get(i, ())) for i in members)
            parts.append(f"{left} of {sum(groups[i].channels.size for i in members)} {kind}")
        share = 1 - macs.total(chosen) / macs.total({})
        return f"{self.name}: {', '.join(parts)} are gone, and with them {share:.1%} of the multiply-accumulates"


_WORDS = {"flops": "multiply-accumulates", "latency": "time"}


@dataclass(frozen=True, eq=False)
class _Group:
    """A group of channels with the layers that read it.

    Attributes:
        number: its place among all groups of the model.
        columns: the channel that each column of a reader's matrix belongs to, by the name of its node.
    """

    number: int
    channels: ChannelGroup
    readers: Mapping[str, LinearLayer]
    columns: Mapping[str, npt.NDArray[np.intp]]

    def places(self, group: int) -> Iterator[Place]:
        """Where the readers read it."""
        read = {name_of(layer.input) for layer in self.readers.values()}
        for activation in self.channels.activations:
            if activation.value in read:
                yield Place(activation.value, activation.axis, group, activation.channels)


def _columns(layer: LinearLayer, channels: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    return np.repeat(channels, layer.shape[2] // len(channels))


def _slices(
    group: ChannelGroup, nodes: Mapping[str, ir.Node]
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.intp]]]:
    """The weights that write or read the channels, as `magnitude` wants them."""
    for part in (*group.writers, *group.readers):
        weight = constant(nodes[part.node].inputs[part.index])
        assert weight is not None
        yield np.moveaxis(weight, part.axis, 0), part.channels


def _up_to(order: Sequence[Step], most: Sequence[float]) -> list[Step]:
    """The steps of each group that take no more of it than `most`."""
    taken, found = [0] * len(most), []
    for step in order:
        taken[step.group] += len(step.units)
        if taken[step.group] <= most[step.group]:
            found.append(step)
    return found
