"""Numeric formats: the only place where the range of a low-precision type is written.

Source: the ONNX operator specification of QuantizeLinear (opsets 10 to 28); the OCP Microscaling Formats
specification 1.0, 2023 (mx); NVIDIA, "Pretraining Large Language Models with NVFP4", 2025 (nvfp4); Dettmers et
al., "QLoRA", 2023, appendix E (nf4).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import onnx_ir as ir


class Scales(StrEnum):
    """How the scales of a tensor are stored."""

    FLOAT32 = "fp32"
    FLOAT16 = "fp16"
    POWER_OF_TWO = "power-of-two"
    """An exponent of 8 bits (E8M0)."""
    E4M3 = "fp8-e4m3"
    """An E4M3 number times one float32 scale of the whole tensor."""
    DOUBLE = "double"
    """Quantized themselves: 8-bit codes in groups of 256 around their mean."""


@dataclass(frozen=True)
class NumericFormat:
    """One low-precision element type.

    Attributes:
        name: the name used in recipes and reports.
        dtype: the ONNX element type of the codes.
        low, high: smallest and largest code (integers), or largest finite magnitude (the others).
        opset: the lowest opset whose QuantizeLinear accepts the type per tensor.
        mantissa_bits: bits of the fraction of a floating-point format.
        lowest_exponent: that of its smallest normal number; below it the step stays the same.
        levels: the values of a codebook at scale 1, ascending; the code is the index.
        block: the block size that the format fixes.
        scales: how its scales are stored where a spec does not say.
    """

    name: str
    dtype: ir.DataType
    low: float
    high: float
    opset: int
    mantissa_bits: int = 0
    lowest_exponent: int = 0
    levels: tuple[float, ...] = ()
    block: int | None = None
    scales: Scales = Scales.FLOAT32

    @property
    def is_integer(self) -> bool:
        return not self.levels and self.mantissa_bits == 0

    @property
    def is_signed(self) -> bool:
        return self.low < 0

    @property
    def step(self) -> float:
        """The smallest difference between two numbers that have codes, at scale 1."""
        if self.levels:
            return min(b - a for a, b in zip(self.levels, self.levels[1:], strict=False))
        return 1.0 if self.is_integer else 2.0 ** (self.lowest_exponent - self.mantissa_bits)

    @property
    def bits(self) -> int:
        return int(self.dtype.bitwidth)


INT8 = NumericFormat("int8", ir.DataType.INT8, -128, 127, 10)
UINT8 = NumericFormat("uint8", ir.DataType.UINT8, 0, 255, 10)
INT16 = NumericFormat("int16", ir.DataType.INT16, -32768, 32767, 21)
UINT16 = NumericFormat("uint16", ir.DataType.UINT16, 0, 65535, 21)
INT4 = NumericFormat("int4", ir.DataType.INT4, -8, 7, 21)
UINT4 = NumericFormat("uint4", ir.DataType.UINT4, 0, 15, 21)
INT2 = NumericFormat("int2", ir.DataType.INT2, -2, 1, 25)
UINT2 = NumericFormat("uint2", ir.DataType.UINT2, 0, 3, 25)
INT32 = NumericFormat("int32", ir.DataType.INT32, -(2**31), 2**31 - 1, 10)
FP8_E4M3 = NumericFormat("fp8-e4m3", ir.DataType.FLOAT8E4M3FN, -448.0, 448.0, 19, 3, -6)
FP8_E5M2 = NumericFormat("fp8-e5m2", ir.DataType.FLOAT8E5M2, -57344.0, 57344.0, 19, 2, -14)

FLOAT16 = NumericFormat("fp16", ir.DataType.FLOAT16, -65504.0, 65504.0, 19, 10, -14)
BFLOAT16 = NumericFormat("bf16", ir.DataType.BFLOAT16, -(2 - 2.0**-7) * 2.0**127, (2 - 2.0**-7) * 2.0**127, 19, 7, -126)

NF4 = NumericFormat(
    "nf4",
    ir.DataType.UINT4,
    -1.0,
    1.0,
    21,
    levels=(
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
)


def _mx(name: str, dtype: ir.DataType, high: float, opset: int, mantissa_bits: int, lowest: int) -> NumericFormat:
    scales = Scales.POWER_OF_TWO
    return NumericFormat(name, dtype, -high, high, opset, mantissa_bits, lowest, block=32, scales=scales)


MXFP4 = _mx("mxfp4", ir.DataType.FLOAT4E2M1, 6.0, 23, 1, 0)
MXFP6_E2M3 = _mx("mxfp6-e2m3", ir.DataType.FLOAT6E2M3, 7.5, 28, 3, 0)
MXFP6_E3M2 = _mx("mxfp6-e3m2", ir.DataType.FLOAT6E3M2, 28.0, 28, 2, -2)
MXFP8_E4M3 = _mx("mxfp8-e4m3", ir.DataType.FLOAT8E4M3FN, 448.0, 19, 3, -6)
MXFP8_E5M2 = _mx("mxfp8-e5m2", ir.DataType.FLOAT8E5M2, 57344.0, 19, 2, -14)
NVFP4 = NumericFormat("nvfp4", ir.DataType.FLOAT4E2M1, -6.0, 6.0, 23, 1, 0, block=16, scales=Scales.E4M3)

_INTEGERS = (INT8, UINT8, INT16, UINT16, INT4, UINT4, INT2, UINT2, INT32)
_FLOATS = (FP8_E4M3, FP8_E5M2, MXFP4, MXFP6_E2M3, MXFP6_E3M2, MXFP8_E4M3, MXFP8_E5M2, NVFP4)

FORMATS = {f.name: f for f in (*_INTEGERS, *_FLOATS, NF4)}
