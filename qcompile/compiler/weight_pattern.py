"""The pattern N:M of a weight: of every M values in a row along what is summed over, at most N are not zero.

    count_nonzero(w[k, M c : M c + M, r, s]) <= N     for all output channels k, all groups c, all taps r, s

It is read off the weight itself, in float or as codes, so that whoever made it is understood alike. Source: the
TensorRT documentation, 'Structured Sparsity', which has builders look for 2:4 in convolutions and products.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.graph import constant, is_constant, nodes

Array = Any  # numpy.ndarray or torch.Tensor

_GROUPS = (4, 8, 16)
"""Lengths of a group that are looked for, the shortest first."""

_FIRST = 64
"""Rows that are looked at before all are: a dense weight shows itself at once."""


_LEAST_PRUNED = 0.1
"""Share of zeros from which somebody meant them."""


@dataclass(frozen=True)
class Pattern:
    """At most `kept` of every `group` values in a row are not zero."""

    kept: int
    group: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """'2:4' and the like.

        Raises:
            ValueError: it is none.
        """
        found = re.fullmatch(r"(\d+):(\d+)", text)
        kept, group = (int(number) for number in found.groups()) if found else (0, 0)
        if not 0 < kept < group:
            raise ValueError(f"'{text}' is no pattern: write N:M with 0 < N < M, such as 2:4")
        return cls(kept, group)

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}"

    def largest(self, scores: Array) -> Array:
        """Where the pattern keeps a value: the `kept` largest scores of each group along the last axis, the first of
        equal ones. Its length is a multiple of `group`."""
        from array_api_compat import array_namespace

        xp = array_namespace(scores)
        groups = xp.reshape(scores, (*scores.shape[:-1], -1, self.group))
        order = xp.argsort(groups, axis=-1, descending=True, stable=True)
        kept = xp.argsort(order, axis=-1) < self.kept  # the place of each score in its group
        return xp.reshape(kept, scores.shape)

    def holds(self, rows: npt.NDArray[Any]) -> bool:
        """Whether `rows` keep to it along their last axis."""
        if rows.shape[-1] % self.group:
            return False
        return all(_most(part, self.group) <= self.kept for part in (rows[:_FIRST], rows))


PATTERN_2_4 = Pattern(2, 4)
"""What sparse tensor cores multiply."""


def weight_pattern(weight: npt.NDArray[Any], summed: int) -> Pattern | None:
    """The pattern that `weight` has along axis `summed`, with at most half of each group kept: of several the one with
    the shortest groups, and of these the sparsest. None for a weight without, and for one of zeros alone."""
    if weight.ndim < 2 or not weight.size:
        return None
    rows = np.moveaxis(weight, summed, -1)
    held = next((group for group in _GROUPS if Pattern(group // 2, group).holds(rows)), None)
    kept = _most(rows, held) if held else 0
    return Pattern(kept, held) if held and kept else None


def is_pruned(weight: npt.NDArray[Any]) -> bool:
    """Whether so many values of `weight` are 0 that it is no chance."""
    return bool(np.count_nonzero(weight) <= (1 - _LEAST_PRUNED) * weight.size)


def has_sparse_weights(model: ir.Model) -> bool:
    """Whether any convolution or product of `model` has a weight with the 2:4 pattern, in float or as codes."""
    return any(_is_sparse(node) for node in nodes(model))


def is_sparse(weight: npt.NDArray[Any], summed: int) -> bool:
    """Whether `weight` has the 2:4 pattern along axis `summed`."""
    pattern = weight_pattern(weight, summed)
    return pattern is not None and pattern.group == PATTERN_2_4.group


def _most(rows: npt.NDArray[Any], group: int) -> int:
    """The most values that are not zero in one group."""
    return int((rows != 0).reshape(-1, group).sum(axis=-1).max())


def _is_sparse(node: ir.Node) -> bool:
    summed = summed_axis(node)
    weight = node.inputs[1] if summed is not None else None
    conversion = weight.producer() if weight is not None else None
    if conversion is not None and conversion.op_type == "DequantizeLinear":
        weight = conversion.inputs[0]
    if summed is None or not is_constant(weight):
        return False
    array = constant(weight)
    return array is not None and is_sparse(array, summed)


def summed_axis(node: ir.Node) -> int | None:
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
