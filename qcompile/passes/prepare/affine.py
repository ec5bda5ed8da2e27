"""Scales and shifts that are the same for all pixels of a channel, whatever operator spells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.graph import constant

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """y = scale * x + shift for each channel (axis 1) of `source`; vectors of shape [C]."""

    source: ir.Value
    scale: Vector
    shift: Vector


def affine_of(node: ir.Node, dims: int, channels: int) -> Affine | None:
    """What `node` computes, if that is a scale and a shift for each channel of a value of rank `dims`."""
    if node.domain != "":
        return None
    if node.op_type == "BatchNormalization":
        return _of_batch_norm(node)
    if node.op_type not in ("Mul", "Div", "Add", "Sub"):
        return None
    a, b = node.inputs
    left, right = constant(a), constant(b)
    if (left is None) == (right is None) or a is None or b is None:
        return None
    known = left if left is not None else right
    assert known is not None
    vector = per_channel(known, dims, channels) if known.dtype.kind == "f" else None
    if vector is None:
        return None
    source, one, zero = (b if left is not None else a), np.ones(channels), np.zeros(channels)
    match node.op_type:
        case "Mul":
            return Affine(source, vector, zero)
        case "Add":
            return Affine(source, one, vector)
        case "Sub":
            return Affine(source, one, -vector) if right is not None else Affine(source, -one, vector)
        case "Div" if right is not None and vector.all():
            return Affine(source, one / vector, zero)
    return None


def _of_batch_norm(node: ir.Node) -> Affine | None:
    source = node.inputs[0]
    constants = [constant(v) for v in node.inputs[1:5]]
    if source is None or any(c is None for c in constants) or node.attributes.get_int("training_mode", 0) == 1:
        return None
    gamma, beta, mean, variance = (c.astype(np.float64) for c in constants if c is not None)
    scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return Affine(source, scale, beta - mean * scale)


def per_channel(array: npt.NDArray[Any], dims: int, channels: int) -> Vector | None:
    """`array` as one number for each channel, if broadcasting it to rank `dims` gives just that.

    With `dims` 1 the only axis is the channel.
    """
    shape = (1,) * (dims - array.ndim) + array.shape
    axis = min(1, dims - 1)
    if len(shape) != dims or shape[axis] not in (1, channels) or array.size != shape[axis]:
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,))
