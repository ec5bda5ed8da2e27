"""What channels are worth, by their weights and by what flows through them; first_order.py has a third answer.

    magnitude     mean of w^2 over all weights that write or read the channel
    fluctuation   tr(W_c Cov_cc W_c^T) / tr(W Cov W^T)

Fluctuation is what a layer that reads channels c loses of the variance of its result when their mean takes their place
(x_c -> E x_c, which its bias can hold): 0 for a constant channel, whatever its size. Cov: of what the layer reads;
W_c: [N, columns of c]. Channels of a group that several layers read are worth the sum.
Source: Li et al., "Pruning Filters for Efficient ConvNets", 2017; An et al., "Fluctuation-based Adaptive Structured
Pruning for Large Language Models", 2024.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

Array = Any  # numpy.ndarray or torch.Tensor
Vector = npt.NDArray[np.float64]


def magnitude(slices: Iterable[tuple[npt.NDArray[Any], npt.NDArray[np.intp]]], size: int) -> Vector:
    """That of `size` channels.

    Args:
        slices: each weight, the axis of its channels first, and the channel of each index; -1 for none.
    """
    squares, counts = np.zeros(size), np.zeros(size)
    for weight, channels in slices:
        rows = np.square(weight.reshape(len(channels), -1), dtype=np.float64)
        used = channels >= 0
        squares += np.bincount(channels[used], rows[used].sum(axis=1), minlength=size)
        counts += np.bincount(channels[used], minlength=size) * rows.shape[1]
    return squares / np.maximum(counts, 1)


def fluctuation(weight: Array, covariance: Array, columns: npt.NDArray[np.intp], size: int) -> Vector:
    """That of `size` channels for one layer that reads them.

    Args:
        weight, covariance: [groups, N, K] and [groups, K, K].
        columns: the channel of each of the K columns; -1 for none.
    """
    xp = array_namespace(weight)
    w, cov = xp.astype(weight, xp.float64), xp.astype(covariance, xp.float64)
    metric = w.swapaxes(1, 2) @ w
    whole = float((metric * cov).sum())
    lost = np.zeros(size)
    if whole > 0:
        for channel in range(size):
            at = xp.asarray(np.flatnonzero(columns == channel))
            lost[channel] = float((metric[:, at][:, :, at] * cov[:, at][:, :, at]).sum()) / whole
    return lost
