"""Variants of Linear24 that between them take every way through its kernels."""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.operators import linear24, linear24_e4m3, linear24_w8a8

_F16, _BF16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16

LINEAR24 = (
    linear24(dtype=_F16),
    linear24(dtype=_BF16, bias=True, activation="Relu"),
    linear24(dtype=_F16, bias=True, activation="Gelu"),
    linear24(dtype=_BF16, activation="Silu"),
    linear24_w8a8(),
    linear24_w8a8(dtype=_BF16, bias=True, activation="Silu"),
    linear24_w8a8(bias=True, activation="Relu", requant=True),
    linear24_e4m3(),
    linear24_e4m3(dtype=_F16, bias=True, activation="Gelu"),
)
