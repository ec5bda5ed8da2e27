"""The 2:4 pattern: of every four weights in a row along what is summed over, at least two are zero.

    count_nonzero(w[k, 4c : 4c + 4, r, s]) <= 2     for all output channels k, all groups c, all taps r, s

Source: the TensorRT documentation, 'Structured Sparsity', which has builders look for it in convolutions and products.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.graph import constant, is_constant, nodes

_GROUP = 4
_FIRST = 64
"""Rows that are looked at before all are: a dense weight shows itself at once."""


def has_sparse_weights(model: ir.Model) -> bool:
    """Whether any convolution or product of `model` has a weight with the 2:4 pattern, in float or as codes."""
    return any(_is_sparse(node) for node in nodes(model))


def is_sparse(weight: npt.NDArray[Any], summed: int) -> bool:
    """Whether `weight` has the pattern along axis `summed`; one of zeros alone does not count."""
    if weight.ndim < 2 or not weight.size or weight.shape[summed] % _GROUP:
        return False
    rows = np.moveaxis(weight, summed, -1)
    return _holds(rows[:_FIRST]) and _holds(rows) and bool((weight != 0).any())


def _holds(rows: npt.NDArray[Any]) -> bool:
    return bool(((rows != 0).reshape(-1, _GROUP).sum(axis=-1) <= _GROUP // 2).all())


def _is_sparse(node: ir.Node) -> bool:
    summed = _summed_axis(node)
    weight = node.inputs[1] if summed is not None else None
    conversion = weight.producer() if weight is not None else None
    if conversion is not None and conversion.op_type == "DequantizeLinear":
        weight = conversion.inputs[0]
    if summed is None or not is_constant(weight):
        return False
    array = constant(weight)
    return array is not None and is_sparse(array, summed)


def _summed_axis(node: ir.Node) -> int | None:
    """The axis of the second input that a node sums over; None where it is no convolution or product."""
    if node.domain not in ("", "ai.onnx"):
        return None
    match node.op_type:
        case "Conv":
            return 1
        case "MatMul":
            return -2
        case "Gemm":
            return 1 if node.attributes.get_int("transB", 0) else 0
    return None
