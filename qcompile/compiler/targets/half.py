"""Which operators a target computes in float16 and bfloat16, as far as that is as safe as float32.

An operator is listed where a kernel exists and its arithmetic keeps what matters: products, pooling, Softmax and
the normalizations accumulate in float32 inside the kernel; what is elementwise rounds its result once. Functions
that grow or shrink their argument beyond measure (Exp, Log, Sqrt, Reciprocal, Sin, Cos), sums that leave a kernel
(ReduceSum, CumSum) and decisions on values (TopK, ArgMax, Floor) are left out: they stay float32. A conversion to
or from codes takes a scale of the same type as its values; rounded to float16 it is off by 2^-11 at most, an eighth of
half a step of 8-bit codes at the end of their range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir


@dataclass(frozen=True)
class Half:
    """Half precision on one target.

    Attributes:
        dtype: what the float rest of a graph becomes; None where nothing is gained.
        kernels: operator types, with their domain unless it is ONNX's own, that may compute in each type.
        refusal: why nothing is gained, and what to do instead.
        evidence: how we know.
    """

    dtype: ir.DataType | None = None
    kernels: Mapping[ir.DataType, frozenset[str]] = field(default_factory=dict)
    refusal: str = ""
    evidence: str = ""


_BOTH = frozenset({
    "Abs", "Add", "Attention", "Cast", "Concat", "Div", "Erf", "Expand", "Flatten", "Gather", "GatherElements",
    "GatherND", "Gelu", "Gemm", "Identity", "IsInf", "IsNaN", "LayerNormalization", "MatMul", "Max", "Min",
    "Mul", "Neg", "Pow", "RMSNormalization", "Relu", "Reshape", "RotaryEmbedding", "ScatterElements",
    "ScatterND", "Shape", "Sigmoid", "Size", "Slice", "Softmax", "Split", "Squeeze", "Sub", "Sum", "Tanh",
    "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
    "com.microsoft::GatherBlockQuantized", "com.microsoft::MatMulBnb4", "com.microsoft::MatMulNBits",
})  # fmt: skip
_FLOAT16_ONLY = frozenset({
    "AveragePool", "Clip", "Compress", "Conv", "ConvTranspose", "DepthToSpace", "DequantizeLinear", "Einsum",
    "Elu", "Equal", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "HardSigmoid",
    "HardSwish", "LeakyRelu", "Less", "LessOrEqual", "LogSoftmax", "MaxPool", "PRelu", "Pad", "QuantizeLinear",
    "Resize", "Selu", "Softplus", "Softsign", "SpaceToDepth", "ThresholdedRelu",
})  # fmt: skip

CUDA_HALF = Half(
    dtype=ir.DataType.FLOAT16,
    kernels={ir.DataType.FLOAT16: _BOTH | _FLOAT16_ONLY, ir.DataType.BFLOAT16: _BOTH},
    evidence="placement by the CUDA provider of ONNX Runtime 1.31.1",
)

_PARSED = frozenset(op for op in _BOTH if "::" not in op)
_NOT_PARSED = frozenset({"Compress"})
TENSORRT_HALF = Half(
    dtype=ir.DataType.FLOAT16,
    kernels={ir.DataType.FLOAT16: (_PARSED | _FLOAT16_ONLY) - _NOT_PARSED, ir.DataType.BFLOAT16: _PARSED},
    evidence="operators that the parser of TensorRT 10.15 takes in FP16 and BF16 (onnx-tensorrt, docs/operators.md) "
    "and that the CUDA provider, which gets what an engine cannot take, computes in it too",
)
