"""How much one run of a model does, counted in the graph as its provider runs it.

    product    y[..., M, N] = x[..., M, K] w            2 |y| K
    convolution y[B, C, ...], w[C, G, kernel]           2 |y| |w| / C         transposed: 2 |x| |w| / C
    recurrence x[S, B, I], weights w, r                 2 S B (|w| + |r|)
    attention  q [B, S, H], T keys                      4 |q| T

Operations are multiplications and additions, by the type of the numbers that are multiplied: weights alone as codes are
multiplied as floats. What a mask or zeros in 2:4 weights would save is counted all the same. Bytes are those of the
inputs and outputs of each node; views move none, and a lookup reads as much as it writes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.runtime.benchmark.profile import NodeRun, Tensor, node_runs
from qcompile.runtime.providers import CPU, CUDA

_PRODUCTS = frozenset({
    "MatMul", "Gemm", "FusedMatMul", "FusedGemm", "GemmFastGelu", "GemmFloat8", "QLinearMatMul", "QGemm",
    "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits", "MatMulBnb4",
    "MatMulBlockQuantizedFp8Weight", "MatMulBlockQuantizedFp4Weight",
})  # fmt: skip
_OURS = "Linear"
"""How the names of our operators for linear layers begin."""

_CONVOLUTIONS = frozenset(
    {"Conv", "FusedConv", "NhwcConv", "NhwcFusedConv", "QLinearConv", "ConvInteger", "ConvTranspose"}
)
_RECURRENT = frozenset({"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"})
_ATTENTION = frozenset({"Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention"})

_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size", "If", "Loop", "Scan"})
_LOOKUPS = frozenset({"Gather", "GatherElements", "GatherND", "GatherBlockQuantized", "Slice"})

_TYPES = {"float": "float32", "double": "float64", "uint8": "int8", "float8e4m3fn": "float8"}


@dataclass(frozen=True)
class Work:
    """One run: operations by the type of the numbers multiplied, and bytes read and written."""

    operations: Mapping[str, float]
    bytes: float

    @property
    def total(self) -> float:
        """Operations of all types."""
        return sum(self.operations.values())


def work_of(model: Path, samples: Sequence[Mapping[str, np.ndarray[Any, Any]]], provider: str) -> list[Work]:
    """The work of one run of `model` on each sample, each of which is run once for that.

    TensorRT shows nothing of its engines; the graph is counted as the CUDA provider runs it.
    """
    return [count(nodes) for nodes in node_runs(model, samples, CPU if provider == CPU else CUDA)]


def count(nodes: Iterable[NodeRun]) -> Work:
    """The work of `nodes`."""
    found: dict[str, float] = defaultdict(float)
    moved = 0.0
    for node in nodes:
        if operations := 2 * _multiply_adds(node):
            found[_type(node)] += operations
        if node.op_type in _LOOKUPS:
            moved += 2 * sum(_bytes(t) for t in node.outputs)
        elif node.op_type not in _VIEWS:
            moved += node.bytes
    return Work(dict(found), moved)


def _multiply_adds(node: NodeRun) -> float:
    if not node.inputs or not node.outputs:
        return 0
    x, y = node.inputs[0], node.outputs[0]
    if node.op_type in _PRODUCTS or node.op_type.startswith(_OURS):
        return _size(y) * _shared(x.shape, y.shape)
    if node.op_type in _CONVOLUTIONS:
        weight = _after_first(node, 3)
        if weight is None:
            return 0
        return _size(x if node.op_type == "ConvTranspose" else y) * _size(weight[0]) / max(weight[0].shape[0], 1)
    if node.op_type in _RECURRENT:
        weights = _after_first(node, 3)
        return math.prod(x.shape[:2]) * sum(_size(w) for w in (weights or ())[:2])
    return _attention(node) if node.op_type in _ATTENTION else 0


def _shared(x: tuple[int, ...], y: tuple[int, ...]) -> int:
    """K, the dimension that a product sums over, whether x is transposed or not."""
    transposed = len(x) > 1 and len(y) > 1 and x[-2] != y[-2] and x[-1] == y[-2]
    return (x[-2] if transposed else x[-1]) if x else 0


def _attention(node: NodeRun) -> float:
    """Queries on keys, and their weights on values; keys are as many as their input says, or with a cache its output.

    ONNX Runtime's `Attention` also makes queries, keys and values from its first input by a weight.
    """
    x, y = node.inputs[0], node.outputs[0]
    second = node.inputs[1].shape if len(node.inputs) > 1 else ()
    lengths = [second[-2]] if len(second) in (3, 4) else [x.shape[1]]
    lengths += [present.shape[-2] for present in node.outputs[1:2] if len(present.shape) >= 4]
    made = _size(x) * second[1] if len(second) == 2 else 0
    return made + 2 * _size(y) * max(lengths)


def _after_first(node: NodeRun, rank: int) -> list[Tensor] | None:
    """The inputs behind the first one of at least that rank; scales and zero points have less."""
    return [t for t in node.inputs[1:] if len(t.shape) >= rank] or None


def _type(node: NodeRun) -> str:
    if node.op_type.startswith("DynamicQuantize") or "W8A8" in node.op_type:
        return "int8"
    if "E4M3" in node.op_type:
        return "float8"
    return _TYPES.get(node.inputs[0].dtype, node.inputs[0].dtype)


def _size(tensor: Tensor) -> int:
    return math.prod(tensor.shape)


_WIDTHS = {"float": 4, "double": 8, "int64": 8, "uint64": 8, "int32": 4, "uint32": 4, "float16": 2, "bfloat16": 2}


def _bytes(tensor: Tensor) -> int:
    return _size(tensor) * _WIDTHS.get(tensor.dtype, 1)
