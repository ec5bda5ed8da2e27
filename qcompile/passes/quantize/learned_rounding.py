"""Whether each weight of one layer is rounded up or down, learned from what the layer computes.

    min over V   K sum_c E||f(X w~_c) - y_c||^2 / e_c  +  lambda sum (1 - |2 h(V) - 1|^beta),
    w~ = s (clip(floor(w/s + z) + h(V), qmin, qmax) - z),   h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)

e_c is the noise that rounding to nearest adds to channel c and K the weights of a channel, so one lambda
serves all layers and numbers of bits. beta falls from 20 to 2, and draws every h to 0 or 1. All V start where
h is the fraction of w/s + z; a weight that is 0 stays 0. What the gradients leave, `polish` takes: single
changes that lower the error. Shapes as in layer_rows.py. Source: Nagel et al., "Up or Down? Adaptive Rounding
for Post-Training Quantization", 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

Array = Any  # numpy.ndarray or torch.Tensor, all of one problem on one device

_MOST_AT_ONCE = 256
_LEAST_AT_ONCE = 32
"""Rows in one step: two for each weight of a channel, within these bounds. A depthwise kernel of 9 weights learns
as much from 32 rows at once as from 256 (errors of 0.29 and 0.29 of rounding to nearest), in a third of the time."""

_RATE = 0.05
_PULL = 10.0
"""lambda. From 3 on all h end at 0 or 1; from 100 on they are drawn there before they have settled (measured on
a layer of 144 x 32 with correlated inputs: errors of 0.22, 0.22 and 0.23 of those of rounding to nearest)."""

_BETA = (20.0, 2.0)
_FREE = 0.2
"""Part of the iterations at the start in which nothing draws the h to 0 or 1."""


@dataclass(frozen=True)
class RoundingProblem:
    """One layer: weights on a fixed grid, and rows of what it reads and shall give.

    Attributes:
        grid: the weights in steps, w/s + z: [groups, N, K].
        scale, zero_point: of each weight: [groups, N, K].
        planned: the codes as they are: [groups, N, K].
        pruned: where a weight is 0 and keeps its planned code: [groups, N, K].
        lowest, highest: the codes there are.
        bias: [groups, N].
        clip: the activation behind the layer, as its bounds.
        inputs, outputs: X [groups, rows, K], and Y [groups, rows, N] before the activation.
    """

    grid: Array
    scale: Array
    zero_point: Array
    planned: Array
    pruned: Array
    lowest: int
    highest: int
    bias: Array
    clip: tuple[float, float]
    inputs: Array
    outputs: Array

    def nearest(self) -> Array:
        xp = array_namespace(self.grid)
        return xp.astype(xp.clip(xp.round(self.grid), self.lowest, self.highest), xp.int32)

    def errors(self, codes: Array, rows: slice = slice(None)) -> Array:
        """E||f(X w~) - f(y)||^2 of each channel over `rows`: float64 [groups, N]."""
        xp = array_namespace(self.grid)
        weight = (xp.astype(codes, xp.float32) - self.zero_point) * self.scale
        given = self.inputs[:, rows] @ weight.swapaxes(1, 2) + self.bias[:, None]
        difference = xp.clip(given, *self.clip) - xp.clip(self.outputs[:, rows], *self.clip)
        return xp.square(xp.astype(difference, xp.float64)).mean(axis=1)


def learn(problem: RoundingProblem, iterations: int, seed: int) -> Array:
    """Codes [groups, N, K], each the one below or above the weight. Needs torch, and computes where the rows lie."""
    import torch

    random = torch.Generator().manual_seed(seed)

    def tensor(array: Array) -> Any:
        return torch.as_tensor(array, dtype=torch.float32).contiguous()

    x, scale, zero, bias = (tensor(a) for a in (problem.inputs, problem.scale, problem.zero_point, problem.bias))
    wanted = torch.clamp(tensor(problem.outputs), *problem.clip)
    weigh = tensor(_weigh(problem))
    planned, pruned = tensor(problem.planned), tensor(problem.pruned).bool()
    below = torch.floor(tensor(problem.grid))
    v = torch.special.logit((tensor(problem.grid) - below + 0.1) / 1.2).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=_RATE)
    rows, at_once = x.shape[1], min(max(2 * x.shape[2], _LEAST_AT_ONCE), _MOST_AT_ONCE)
    for i in range(iterations):
        some = torch.randperm(rows, generator=random)[:at_once].to(x.device)
        up = _gate(v, torch)
        codes = torch.clamp(below + up, problem.lowest, problem.highest)
        weight = (torch.where(pruned, planned, codes) - zero) * scale
        given = torch.baddbmm(bias[:, None], x[:, some], weight.transpose(1, 2))
        loss = (torch.square(torch.clamp(given, *problem.clip) - wanted[:, some]).mean(1) * weigh).sum()
        progress = (i / iterations - _FREE) / (1 - _FREE)
        if progress > 0:
            beta = _BETA[1] + (_BETA[0] - _BETA[1]) * (1 + math.cos(math.pi * progress)) / 2
            loss = loss + _PULL * (1 - (2 * up - 1).abs().pow(beta)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        codes = torch.clamp(below + (_gate(v, torch) >= 0.5), problem.lowest, problem.highest)
    found = torch.where(pruned, planned, codes).to(torch.int32)
    return found.numpy() if isinstance(problem.grid, np.ndarray) else found


def polish(problem: RoundingProblem, codes: Array) -> Array:
    """Codes that no single change between below and above improves, in the quadratic error without activation.

    The gradient search ends near such a point; flipping one weight of each channel at a time, the one that
    gains most, costs one row of X^T X each.
    """
    x, xp = problem.inputs, array_namespace(problem.inputs)
    gram = x.swapaxes(1, 2) @ x / x.shape[1]
    below, scale = xp.floor(problem.grid), problem.scale
    here = xp.astype(codes, xp.float32)
    target = (x.swapaxes(1, 2) @ (problem.outputs - problem.bias[:, None]) / x.shape[1]).swapaxes(1, 2)
    slope = ((here - problem.zero_point) * scale) @ gram - target
    diagonal = xp.linalg.diagonal(gram)[:, None]
    groups, channels = (xp.arange(n, device=device(gram)) for n in here.shape[:2])
    for _ in range(problem.grid.shape[2]):
        other = xp.clip(2 * below + 1 - here, problem.lowest, problem.highest)
        step = xp.where(problem.pruned, 0, other - here) * scale
        change = (2 * slope + step * diagonal) * step
        best = groups[:, None], channels[None, :], xp.argmin(change, axis=2)
        gains = change[best] < 0
        if not xp.any(gains):
            break
        here[best] = xp.where(gains, other[best], here[best])
        slope += (gains * step[best])[:, :, None] * gram[best[0], best[2]]
    return xp.astype(here, xp.int32)


def _gate(v: Any, torch: Any) -> Any:
    return torch.clamp(1.2 * torch.sigmoid(v) - 0.1, 0, 1)


def _weigh(problem: RoundingProblem) -> Array:
    """K / e_c for each channel."""
    xp = array_namespace(problem.grid)
    rounded = (xp.astype(problem.nearest(), xp.float32) - problem.grid) * problem.scale
    noise = xp.square(xp.astype(problem.inputs @ rounded.swapaxes(1, 2), xp.float64)).mean(axis=1)
    least = 1e-30  # a channel whose weights lie on the grid
    return problem.grid.shape[2] / xp.clip(noise, least, None)
