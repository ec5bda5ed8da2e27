"""A convolution or linear layer as a matrix product over sampled positions.

    Y[g, p] = X[g, p] W[g]^T      X: [groups, rows, K], W: [groups, N, K], Y: [groups, rows, N]

A row is one position of the result: what the kernel sees there (im2col, for the chosen positions alone), and
what the layer computes of it. A linear layer has one group, and a token or an image is a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = np.ndarray[Any, Any]
Floats = npt.NDArray[np.float32]


@dataclass
class LayerRows:
    """The rows of one layer, gathered from one sample after the other."""

    node: ir.Node
    random: np.random.Generator
    inputs: list[Floats] = field(default_factory=list)
    outputs: list[Floats] = field(default_factory=list)

    def add(self, x: Array, y: Array, most: int) -> None:
        """Take at most `most` positions of one sample, drawn without repetition.

        Args:
            x, y: what the layer reads, and what it shall give, in the model's layout.
        """
        rows = self._windows(x, y, most) if self.node.op_type == "Conv" else self._vectors(x, y, most)
        groups = self.node.attributes.get_int("group", 1)
        for kept, array in zip((self.inputs, self.outputs), rows, strict=True):
            grouped = array.reshape(len(array), groups, -1).swapaxes(0, 1)
            kept.append(np.ascontiguousarray(grouped, np.float32))

    def stacked(self) -> tuple[Floats, Floats]:
        """X [groups, rows, K] and Y [groups, rows, N]."""
        return np.concatenate(self.inputs, axis=1), np.concatenate(self.outputs, axis=1)

    def _vectors(self, x: Array, y: Array, most: int) -> tuple[Array, Array]:
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        chosen = self._chosen(len(y), most)
        return x[chosen], y[chosen]

    def _windows(self, x: Array, y: Array, most: int) -> tuple[Array, Array]:
        """The input windows [rows, C, k...] of the chosen positions, and their outputs [rows, channels]."""
        weight, spatial = self.node.inputs[1], x.shape[2:]
        assert weight is not None
        assert weight.shape is not None
        kernel = weight.shape.numpy()[2:]
        strides, dilations = (self._each(name, len(spatial)) for name in ("strides", "dilations"))
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        before = self._padding(spatial, y.shape[2:], strides, reach)
        needed = [(o - 1) * s + r for o, s, r in zip(y.shape[2:], strides, reach, strict=True)]
        after = [max(n - b - i, 0) for n, b, i in zip(needed, before, spatial, strict=True)]
        padded = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
        axes = tuple(range(2, x.ndim))
        windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
        for axis, d in enumerate(dilations, x.ndim):
            windows = np.moveaxis(np.moveaxis(windows, axis, 0)[::d], 0, axis)
        count = y.shape[0] * int(np.prod(y.shape[2:]))
        image, *at = np.unravel_index(self._chosen(count, most), (y.shape[0], *y.shape[2:]))
        starts = [a * s for a, s in zip(at, strides, strict=True)]
        channels_last = np.moveaxis(windows, 1, x.ndim - 1), np.moveaxis(y, 1, -1)
        return channels_last[0][(image, *starts)], channels_last[1][(image, *at)]

    def _chosen(self, count: int, most: int) -> npt.NDArray[np.intp]:
        if count <= most:
            return np.arange(count)
        return np.sort(self.random.choice(count, most, replace=False))

    def _each(self, name: str, rank: int) -> Sequence[int]:
        return self.node.attributes.get_ints(name) or [1] * rank

    def _padding(
        self, size: Sequence[int], result: Sequence[int], strides: Sequence[int], reach: Sequence[int]
    ) -> list[int]:
        """What is added before each spatial axis."""
        automatic = self.node.attributes.get_string("auto_pad", "NOTSET")
        if automatic == "NOTSET":
            return list(self._each("pads", 0) or [0] * (2 * len(size)))[: len(size)]
        total = [max((o - 1) * s + r - i, 0) for o, s, r, i in zip(result, strides, reach, size, strict=True)]
        return [(t + 1) // 2 if automatic == "SAME_LOWER" else t // 2 for t in total]


def matrix(node: ir.Node, weight: Array) -> Array:
    """The weight of a layer, in the model's layout, as [groups, N, K]."""
    groups = node.attributes.get_int("group", 1)
    if node.op_type != "Conv" and not node.attributes.get_int("transB", 0):
        weight = weight.T
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def in_layout(node: ir.Node, rows: Array, like: Array) -> Array:
    """The reverse of `matrix`: [groups, N, K] in the layout of `like`."""
    if node.op_type != "Conv" and not node.attributes.get_int("transB", 0):
        return np.ascontiguousarray(rows.reshape(like.shape[::-1]).T)
    return rows.reshape(like.shape)
