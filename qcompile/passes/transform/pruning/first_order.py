"""What channels are worth to the answers of the model: how far these move when the channels do not, to first order.

    f(x) - f(x; z_c -> E z_c)  ~  df/dm_c,   z~ = E z + m (z - E z) at m = 1
    importance_c = E_x E_v (d<v, f(x)> / dm_c)^2 / E_x ||f(x)||^2  =  E_x ||df/dm_c||^2 / E_x ||f(x)||^2,   v ~ N(0, 1)

z: the activations that read the group's channels; f: all floating-point outputs. One backward run with a random v gives
all channels of all groups, so labels are not needed, and what is found is comparable over layers. Where the answers are
linear in a channel it is the exact error.
Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019, here with the output itself in the
place of a loss; Hutchinson, "A stochastic estimator of the trace", 1990.

Errors: QCompileError without torch, ModelError for a graph that torch cannot run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.runtime.torch_graph import TorchGraph

if TYPE_CHECKING:
    import torch

_DRAWS = 4
"""Random directions for each sample."""


@dataclass(frozen=True)
class Place:
    """An axis of an activation through which channels of a group run on their way to a reader.

    Attributes:
        group: the number of the group.
        channels: the channel of each index of the axis; -1 for none.
    """

    value: str
    axis: int
    group: int
    channels: npt.NDArray[np.intp]


def first_order(
    model: ir.Model,
    places: Sequence[Place],
    sizes: Sequence[int],
    samples: Iterable[Mapping[str, np.ndarray[Any, Any]]],
    seed: int,
    device: str,
) -> list[npt.NDArray[np.float64]]:
    """The importance of the channels of each group.

    Args:
        sizes: how many channels the groups have.
    """
    import torch

    graph, feeds = TorchGraph(model, device), [_tensors(sample, device) for sample in samples]
    by_value: dict[str, list[Place]] = {}
    for place in places:
        by_value.setdefault(place.value, []).append(place)
    means = _means(graph, feeds, by_value)
    random = torch.Generator(device).manual_seed(seed)
    found, energy = [np.zeros(size) for size in sizes], 0.0
    for feed in feeds:
        masks = [torch.ones(size + 1, device=device, requires_grad=True) for size in sizes]

        def masked(name: str, tensor: torch.Tensor, masks: list[torch.Tensor] = masks) -> torch.Tensor:
            for place in by_value.get(name, ()):
                shape = [1] * tensor.ndim
                shape[place.axis] = -1
                mask, mean = masks[place.group][place.channels].reshape(shape), means[name, place.axis].reshape(shape)
                tensor = mean + mask * (tensor - mean)
            return tensor

        answers = [y for y in graph(feed, edit=masked).values() if y.is_floating_point()]
        energy += sum(float(y.detach().square().sum()) for y in answers)
        for draw in range(_DRAWS):
            along = [torch.randn(y.shape, generator=random, device=device) for y in answers]
            moved = sum(((y * v).sum() for y, v in zip(answers, along, strict=True)), torch.zeros((), device=device))
            slopes = torch.autograd.grad(moved, masks, retain_graph=draw + 1 < _DRAWS, allow_unused=True)
            for total, slope in zip(found, slopes, strict=True):
                if slope is not None:
                    total += slope[:-1].square().cpu().numpy()
    return [total / (max(energy, float(np.finfo(np.float32).tiny)) * _DRAWS) for total in found]


def _means(
    graph: TorchGraph, feeds: Sequence[dict[str, torch.Tensor]], by_value: Mapping[str, Sequence[Place]]
) -> dict[tuple[str, int], torch.Tensor]:
    """The mean of each index of the axes of the places."""
    import torch

    totals: dict[tuple[str, int], Any] = {}
    counts: dict[tuple[str, int], int] = {}

    def seen(name: str, tensor: torch.Tensor) -> torch.Tensor:
        for place in by_value.get(name, ()):
            key, rows = (name, place.axis), tensor.movedim(place.axis, -1).reshape(-1, tensor.shape[place.axis])
            totals[key] = totals.get(key, 0) + rows.sum(dim=0)
            counts[key] = counts.get(key, 0) + len(rows)
        return tensor

    with torch.no_grad():
        for feed in feeds:
            graph(feed, edit=seen)
    return {key: total / counts[key] for key, total in totals.items()}


def _tensors(sample: Mapping[str, np.ndarray[Any, Any]], device: str) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in sample.items()}
