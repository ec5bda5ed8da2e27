"""Numeric formats: the only place where the range of a low-precision type is written.

Source: the ONNX operator specification of QuantizeLinear (opsets 10 to 23).
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import onnx_ir as ir


@dataclass(frozen=True)
class NumericFormat:
    """One low-precision element type.

    Attributes:
        name: the name used in recipes and reports.
        dtype: the ONNX element type of the codes.
        low, high: smallest and largest code (integers), or largest finite magnitude (floats).
        opset: the lowest opset whose QuantizeLinear accepts the type per tensor.
    """

    name: str
    dtype: ir.DataType
    low: float
    high: float
    opset: int

    @property
    def is_integer(self) -> bool:
        return not self.name.startswith("fp")

    @property
    def is_signed(self) -> bool:
        return self.low < 0

    @property
    def mantissa_bits(self) -> int:
        """Bits of the fraction of a floating-point format."""
        return int(ml_dtypes.finfo(self.dtype.numpy()).nmant)

    @property
    def lowest_exponent(self) -> int:
        """Exponent of the smallest normal number of a floating-point format; below it the step stays the same."""
        return int(ml_dtypes.finfo(self.dtype.numpy()).minexp)

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
FP8_E4M3 = NumericFormat("fp8-e4m3", ir.DataType.FLOAT8E4M3FN, -448.0, 448.0, 19)
FP8_E5M2 = NumericFormat("fp8-e5m2", ir.DataType.FLOAT8E5M2, -57344.0, 57344.0, 19)

FORMATS = {f.name: f for f in (INT8, UINT8, INT16, UINT16, INT4, UINT4, INT32, FP8_E4M3, FP8_E5M2)}
