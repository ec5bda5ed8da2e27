"""Numeric formats: the only place where the range of a low-precision type is written.

Source: the ONNX operator specification of QuantizeLinear (opsets 10 to 23).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class NumericFormat:
    """One low-precision element type.

    Attributes:
        name: the name used in recipes and reports.
        dtype: the ONNX element type of the codes.
        low, high: smallest and largest code (integers), or largest finite magnitude (floats).
        opset: the lowest opset whose QuantizeLinear accepts the type per tensor.
        mantissa_bits: bits of the fraction of a floating-point format.
        lowest_exponent: that of its smallest normal number; below it the step stays the same.
    """

    name: str
    dtype: ir.DataType
    low: float
    high: float
    opset: int
    mantissa_bits: int = 0
    lowest_exponent: int = 0

    @property
    def is_integer(self) -> bool:
        return not self.name.startswith("fp")

    @property
    def is_signed(self) -> bool:
        return self.low < 0

    @property
    def step(self) -> float:
        """The smallest difference between two numbers that have codes, at scale 1."""
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
INT32 = NumericFormat("int32", ir.DataType.INT32, -(2**31), 2**31 - 1, 10)
FP8_E4M3 = NumericFormat("fp8-e4m3", ir.DataType.FLOAT8E4M3FN, -448.0, 448.0, 19, 3, -6)
FP8_E5M2 = NumericFormat("fp8-e5m2", ir.DataType.FLOAT8E5M2, -57344.0, 57344.0, 19, 2, -14)

FLOAT16 = NumericFormat("fp16", ir.DataType.FLOAT16, -65504.0, 65504.0, 19, 10, -14)
BFLOAT16 = NumericFormat("bf16", ir.DataType.BFLOAT16, -(2 - 2.0**-7) * 2.0**127, (2 - 2.0**-7) * 2.0**127, 19, 7, -126)

FORMATS = {f.name: f for f in (INT8, UINT8, INT16, UINT16, INT4, UINT4, INT32, FP8_E4M3, FP8_E5M2)}
