"""A convolution or linear layer as a matrix product over sampled positions.

    Y[g, p] = X[g, p] W[g]^T      X: [groups, rows, K], W: [groups, N, K], Y: [groups, rows, N]

A row is one position of the result: what the kernel sees there (im2col, for the chosen positions alone), and
what the layer computes of it. A linear layer has one group, and a token or an image is a row. Written against the
array API: activations stay on the device where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from array_api_compat import array_namespace, device, is_numpy_array

from qcompile.compiler.params import QuantParams, dequantize, quantize

Array = Any  # numpy.ndarray or torch.Tensor


@dataclass
class LayerRows:
    """The rows of one layer, gathered from one sample after the other."""

    node: ir.Node
    random: np.random.Generator
    inputs: list[Array] = field(default_factory=list)
    outputs: list[Array] = field(default_factory=list)

    def add(self, x: Array, y: Array, most: int) -> None:
        """Take at most `most` positions of one sample, drawn without repetition.

        Args:
            x, y: what the layer reads, and what it shall give, in the model's layout.
        """
        rows = self._windows(x, y, most) if self.node.op_type == "Conv" else self._vectors(x, y, most)
        groups = self.node.attributes.get_int("group", 1)
        for kept, array in zip((self.inputs, self.outputs), rows, strict=True):
            kept.append(_grouped(array.reshape((len(array), -1)), groups))

    def stacked(self) -> tuple[Array, Array]:
        """X [groups, rows, K] and Y [groups, rows, N]."""
        xp = array_namespace(*self.inputs)
        return xp.concat(self.inputs, axis=1), xp.concat(self.outputs, axis=1)

    def _vectors(self, x: Array, y: Array, most: int) -> tuple[Array, Array]:
        x, y = x.reshape((-1, x.shape[-1])), y.reshape((-1, y.shape[-1]))
        chosen = _index(self._chosen(len(y), most), x)
        return x[chosen], y[chosen]

    def _windows(self, x: Array, y: Array, most: int) -> tuple[Array, Array]:
        """The input windows [rows, C, k...] of the chosen positions, and their outputs [rows, channels]."""
        result = y.shape[2:]
        places = np.unravel_index(self._chosen(y.shape[0] * int(np.prod(result)), most), (y.shape[0], *result))
        at = tuple(_index(place, x) for place in places)
        return windows(self.node, x, result)[at], array_namespace(y).moveaxis(y, 1, -1)[at]

    def _chosen(self, count: int, most: int) -> npt.NDArray[np.intp]:
        if count <= most:
            return np.arange(count)
        return np.sort(self.random.choice(count, most, replace=False))


def is_product(node: ir.Node) -> bool:
    """Whether a layer is a product with one matrix, or with one for each group."""
    weight = node.inputs[1]
    rank = weight.shape.rank() if weight is not None and weight.shape is not None else 0
    return node.op_type == "Conv" or (node.op_type in ("Gemm", "MatMul") and rank == 2)


def every_row(node: ir.Node, x: Array) -> Array:
    """X [groups, rows, K] of all positions of one sample, where `x` is what the layer reads."""
    if node.op_type == "Conv":
        seen = windows(node, x, _positions(node, x.shape[2:]))
        x = seen.reshape((*seen.shape[: x.ndim - 1], -1))
    return _grouped(x.reshape((-1, x.shape[-1])), node.attributes.get_int("group", 1))


def _grouped(rows: Array, groups: int) -> Array:
    """[rows, groups * K] as float32 [groups, rows, K]."""
    xp = array_namespace(rows)
    parted = rows.reshape((rows.shape[0], groups, rows.shape[1] // groups))
    return xp.astype(parted.swapaxes(0, 1), xp.float32, copy=False)


def _index(places: npt.NDArray[np.intp], like: Array) -> Array:
    return array_namespace(like).asarray(places, device=device(like))


def windows(node: ir.Node, x: Array, result: Sequence[int]) -> Array:
    """What the kernel of a convolution sees at each position of its result: [images, positions..., C, k...].

    Args:
        result: the sizes of the result.
    """
    spatial = x.shape[2:]
    strides, dilations, reach = _geometry(node, len(spatial))
    before = _padding(node, spatial, result, strides, reach)
    needed = [(o - 1) * s + r for o, s, r in zip(result, strides, reach, strict=True)]
    after = [max(n - b - i, 0) for n, b, i in zip(needed, before, spatial, strict=True)]
    sizes = [b + i + a for b, i, a in zip(before, spatial, after, strict=True)]
    xp = array_namespace(x)
    seen = xp.zeros((*x.shape[:2], *sizes), dtype=x.dtype, device=device(x))
    seen[(..., *(slice(b, b + i) for b, i in zip(before, spatial, strict=True)))] = x
    for axis, (stride, dilation, span, size) in enumerate(zip(strides, dilations, reach, result, strict=True), 2):
        seen = _sliding(seen, axis, span)[(*(slice(None),) * axis, slice(None, None, stride))]
        seen = seen[(*(slice(None),) * axis, slice(size))][..., ::dilation]
    return xp.moveaxis(seen, 1, x.ndim - 1)


def _sliding(x: Array, axis: int, size: int) -> Array:
    """A view in which all windows of `size` along `axis` lie on a last axis: each library has its own word for it."""
    if is_numpy_array(x):
        return np.lib.stride_tricks.sliding_window_view(x, size, axis=axis)
    return x.unfold(axis, size, 1)


def _geometry(node: ir.Node, rank: int) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Strides, dilations, and how many inputs a kernel spans along each axis."""
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    strides, dilations = (node.attributes.get_ints(name) or [1] * rank for name in ("strides", "dilations"))
    return strides, dilations, [(k - 1) * d + 1 for k, d in zip(weight.shape.numpy()[2:], dilations, strict=True)]


def _positions(node: ir.Node, spatial: Sequence[int]) -> list[int]:
    """The sizes of the result of a convolution."""
    strides, _, reach = _geometry(node, len(spatial))
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if automatic.startswith("SAME"):
        return [-(-i // s) for i, s in zip(spatial, strides, strict=True)]
    rank = len(spatial)
    pads = (node.attributes.get_ints("pads") if automatic == "NOTSET" else None) or [0] * (2 * rank)
    sizes = [i + pads[a] + pads[a + rank] for a, i in enumerate(spatial)]
    return [(i - r) // s + 1 for i, s, r in zip(sizes, strides, reach, strict=True)]


def _padding(
    node: ir.Node, size: Sequence[int], result: Sequence[int], strides: Sequence[int], reach: Sequence[int]
) -> list[int]:
    """What is added before each spatial axis."""
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if automatic == "NOTSET":
        return list(node.attributes.get_ints("pads") or [0] * (2 * len(size)))[: len(size)]
    total = [max((o - 1) * s + r - i, 0) for o, s, r, i in zip(result, strides, reach, size, strict=True)]
    return [(t + 1) // 2 if automatic == "SAME_LOWER" else t // 2 for t in total]


def as_read(x: Array, params: QuantParams | None) -> Array:
    """The values that the codes of a layer's input stand for; the input itself where it is read as float."""
    return x if params is None else dequantize(quantize(x, params), params)


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
