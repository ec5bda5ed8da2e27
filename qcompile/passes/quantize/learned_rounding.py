"""Whether each weight of one layer is rounded up or down, learned from what the layer computes.

    min over V   K sum_c E||f(X w~_c) - y_c||^2 / e_c  +  lambda sum (1 - |2 h(V) - 1|^beta),
    w~ = s (clip(floor(w/s + z) + h(V), qmin, qmax) - z),   h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)

e_c is the noise that rounding to nearest adds to channel c and K the weights of a channel, so one lambda
serves all layers and numbers of bits. beta falls from 20 to 2, and draws every h to 0 or 1. All V start where
h is the fraction of w/s + z. What the gradients leave, `polish` takes: single changes that lower the error.
Shapes as in layer_rows.py. Source: Nagel et al., "Up or Down? Adaptive Rounding
for Post-Training Quantization", 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = np.ndarray[Any, Any]

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
        lowest, highest: the codes there are.
        bias: [groups, N].
        clip: the activation behind the layer, as its bounds.
        inputs, outputs: X [groups, rows, K], and Y [groups, rows, N] before the activation.
    """

    grid: Array
    scale: Array
    zero_point: Array
    planned: Array
    lowest: int
    highest: int
    bias: Array
    clip: tuple[float, float]
    inputs: Array
    outputs: Array

    def nearest(self) -> npt.NDArray[np.int32]:
        return np.clip(np.rint(self.grid), self.lowest, self.highest).astype(np.int32)

    def errors(self, codes: Array, rows: Array | slice = slice(None)) -> npt.NDArray[np.float64]:
        """E||f(X w~) - f(y)||^2 of each channel over `rows`: [groups, N]."""
        weight = (codes - self.zero_point) * self.scale
        given = self.inputs[:, rows] @ weight.swapaxes(1, 2).astype(np.float32) + self.bias[:, None]
        difference = np.clip(given, *self.clip) - np.clip(self.outputs[:, rows], *self.clip)
        return np.asarray(np.square(difference, dtype=np.float64).mean(axis=1))


def learn(problem: RoundingProblem, iterations: int, seed: int) -> npt.NDArray[np.int32]:
    """Codes [groups, N, K], each the one below or above the weight. Needs torch."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    random = torch.Generator().manual_seed(seed)

    def tensor(array: Array) -> Any:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device)

    x, scale, zero, bias = (tensor(a) for a in (problem.inputs, problem.scale, problem.zero_point, problem.bias))
    wanted = tensor(np.clip(problem.outputs, *problem.clip))
    weigh = tensor(_weigh(problem))
    below = torch.floor(tensor(problem.grid))
    v = torch.special.logit((tensor(problem.grid) - below + 0.1) / 1.2).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=_RATE)
    rows, at_once = x.shape[1], min(max(2 * x.shape[2], _LEAST_AT_ONCE), _MOST_AT_ONCE)
    for i in range(iterations):
        some = torch.randperm(rows, generator=random)[:at_once].to(device)
        up = _gate(v, torch)
        weight = (torch.clamp(below + up, problem.lowest, problem.highest) - zero) * scale
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
    return np.asarray(codes.cpu(), np.int32)


def polish(problem: RoundingProblem, codes: Array) -> npt.NDArray[np.int32]:
    """Codes that no single change between below and above improves, in the quadratic error without activation.

    The gradient search ends near such a point; flipping one weight of each channel at a time, the one that
    gains most, costs one row of X^T X each.
    """
    x = problem.inputs
    gram = x.swapaxes(1, 2) @ x / x.shape[1]
    below, scale = np.floor(problem.grid), problem.scale
    here = codes.astype(np.float32)
    target = (x.swapaxes(1, 2) @ (problem.outputs - problem.bias[:, None]) / x.shape[1]).swapaxes(1, 2)
    slope = ((here - problem.zero_point) * scale) @ gram - target
    diagonal = np.diagonal(gram, axis1=1, axis2=2)[:, None]
    for _ in range(problem.grid.shape[2]):
        other = np.clip(2 * below + 1 - here, problem.lowest, problem.highest)
        step = (other - here) * scale
        change = (2 * slope + step * diagonal) * step
        at = change.argmin(axis=2, keepdims=True)
        gains = np.take_along_axis(change, at, 2) < 0
        if not gains.any():
            break
        moved = np.where(gains, np.take_along_axis(step, at, 2), 0)
        np.put_along_axis(
            here, at, np.where(gains, np.take_along_axis(other, at, 2), np.take_along_axis(here, at, 2)), 2
        )
        slope += moved * np.take_along_axis(gram, at, 1)
    return here.astype(np.int32)


def _gate(v: Any, torch: Any) -> Any:
    return torch.clamp(1.2 * torch.sigmoid(v) - 0.1, 0, 1)


def _weigh(problem: RoundingProblem) -> Array:
    """K / e_c for each channel."""
    rounded = (problem.nearest() - problem.grid) * problem.scale
    noise = np.square(problem.inputs @ rounded.swapaxes(1, 2).astype(np.float32), dtype=np.float64).mean(axis=1)
    least = 1e-30  # a channel whose weights lie on the grid
    return np.asarray(problem.grid.shape[2] / np.maximum(noise, least))
