"""Inputs whose activations have the moments that BatchNormalization remembers of the training data.

    loss(x) = mean over layers l and channels c of ((mean(v_lc) - m_lc) / s_lc)^2 + (std(v_lc) / s_lc - 1)^2

with v_l the value that layer l writes for the batch x, and m, s its recorded mean and deviation. Minimised by
Adam with a falling step, from the best of a few starts. A large image is found at half its size, for a quarter
of the time, and mirrored to its full one: the statistics of a picture do not depend on its size.
Source: Cai et al., "ZeroQ", 2020 (arXiv:2001.00281); here each channel counts in its own deviations, so layers
of small values count as much as others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.compiler.context import Progress
from qcompile.compiler.moments import Moments
from qcompile.errors import ModelError
from qcompile.runtime.torch_graph import TorchGraph

if TYPE_CHECKING:
    import torch

Arrays = dict[str, np.ndarray[Any, Any]]

_STARTS = ((0.0, 1.0), (0.5, 0.25), (0.0, 0.25), (128.0, 64.0), (0.0, 64.0))
"""(offset, scale) of the normal numbers to begin with: pictures come normalised, in [0, 1] or in [0, 255]."""

_LARGE = 192
"""Side in pixels from which an image is searched at half its size."""

_SMALLEST_DEVIATION = 0.05
"""Of a channel, relative to the largest of its layer: dead channels must not drown the others."""


class Distillation:
    """The search for one batch.

    Attributes:
        losses: of noise, and of what came out of the search.
    """

    def __init__(self, graph: TorchGraph, moments: Mapping[str, Moments]) -> None:
        import torch

        self.graph, self.names = graph, list(moments)
        self.targets = []
        for m in moments.values():
            assert m.deviation is not None
            spread = np.maximum(m.deviation, max(_SMALLEST_DEVIATION * float(m.deviation.max()), 1e-6))
            self.targets.append((torch.from_numpy(m.mean).float(), torch.from_numpy(spread).float()))
        self.losses = (math.inf, math.inf)

    def run(self, start: Arrays, iterations: int, rate: float, progress: Progress) -> Arrays:
        """`start` with its floating-point inputs replaced by what minimises the loss."""
        import torch

        fixed = {k: torch.from_numpy(v) for k, v in start.items() if v.dtype != np.float32}
        drawn = {k: torch.from_numpy(v) for k, v in start.items() if v.dtype == np.float32}
        halves = {k: v[..., : v.shape[-2] // 2, : v.shape[-1] // 2] if _is_large(v) else v for k, v in drawn.items()}
        try:
            first = self.starts(fixed, halves)
        except ModelError:  # the sizes of images stand in the graph
            halves, first = drawn, self.starts(fixed, drawn)
        offset, scale = _STARTS[int(np.argmin(first))]
        # learned in units of the start, so that one step size serves [0, 1] and [0, 255]
        learned = {k: v.clone().requires_grad_() for k, v in halves.items()}
        optimizer = torch.optim.Adam(list(learned.values()), lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
        best, result = min(first), {k: v.detach().clone() for k, v in learned.items()}
        for _ in range(iterations):
            optimizer.zero_grad()
            loss = self.loss(fixed | {k: offset + scale * v for k, v in learned.items()})
            if loss.item() < best:
                best, result = loss.item(), {k: v.detach().clone() for k, v in learned.items()}
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            progress.advance()
        self.losses = (first[0], best)
        found = {k: (offset + scale * v).numpy() for k, v in result.items()}
        return start | {k: v if v.shape == drawn[k].shape else mirrored(v) for k, v in found.items()}

    def starts(self, fixed: Mapping[str, torch.Tensor], drawn: Mapping[str, torch.Tensor]) -> list[float]:
        """The loss of each of the starts."""
        import torch

        with torch.no_grad():
            return [float(self.loss({**fixed, **{k: o + s * v for k, v in drawn.items()}})) for o, s in _STARTS]

    def loss(self, feeds: Mapping[str, torch.Tensor]) -> torch.Tensor:
        import torch

        terms = []
        values = self.graph(feeds, self.names)
        for name, (mean, spread) in zip(self.names, self.targets, strict=True):
            value = values[name]
            over = [i for i in range(value.ndim) if i != 1]
            variance, average = torch.var_mean(value, over, correction=0)
            # a deviation of zero has no gradient
            deviation = torch.sqrt(variance + 1e-8 * spread.square())
            terms.append(((average - mean) / spread).square().mean() + (deviation / spread - 1).square().mean())
        return torch.stack(terms).mean()


def mirrored(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`image` beside and above its mirror images, twice as wide and as high."""
    wide = np.concatenate([image, image[..., ::-1]], axis=-1)
    return np.ascontiguousarray(np.concatenate([wide, wide[..., ::-1, :]], axis=-2))


def _is_large(image: torch.Tensor) -> bool:
    return image.ndim == 4 and all(side >= _LARGE and side % 2 == 0 for side in image.shape[2:])
