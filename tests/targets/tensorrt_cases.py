"""Graphs that TensorRT takes and graphs that it does not, after NVIDIA's documented rules: one for each rule.

As a program: asks NVIDIA's builder about all of them, and prints what it says as JSON.

    python -m tests.targets.tensorrt_cases FOLDER
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from qcompile.runtime import engine_builder
from tests.passes.harness import model_of
from tests.passes.int8 import head, normal

GUIDE = "docs.nvidia.com/deeplearning/tensorrt: Working with Quantized Types"
PARSER = "github.com/onnx/onnx-tensorrt: onnxOpImporters.cpp, QuantDequantLinearHelper"
OPERATORS = "github.com/onnx/onnx-tensorrt: docs/operators.md"
DEQUANTIZE = "docs.nvidia.com/deeplearning/tensorrt: operators, Dequantize; IDequantizeLayer"

_INT4, _FP8 = ml_dtypes.int4, ml_dtypes.float8_e4m3fn
_CONV = "g (float[1,8,8,8] x) => (float[1,8,8,8] y) "
_PRODUCT = "g (float[4,64] x) => (float[4,32] y) "
_X = "a = QuantizeLinear (x, sx, zx) b = DequantizeLinear (a, sx, zx) "
_WEIGHT = "w = DequantizeLinear <axis = 0> (wq, sw, zw) "
_PADDED = "pads = [1, 1, 1, 1]"

Arrays = dict[str, Any]


def _int8(*shape: int) -> Any:
    return (20 * normal(*shape)).clip(-127, 127).astype(np.int8)


def _conv_weights(**others: Any) -> Arrays:
    """Codes of a convolution of 8 channels, and the parameters of its input."""
    base = {"wq": _int8(8, 8, 3, 3), "sw": np.full(8, 0.01, np.float32), "zw": np.zeros(8, np.int8)}
    return base | {"sx": np.float32(0.05), "zx": np.int8(0)} | others


def _product_weights(**others: Any) -> Arrays:
    base = {"wq": _int8(64, 32), "sw": np.full(32, 0.01, np.float32), "zw": np.zeros(32, np.int8)}
    return base | {"sx": np.float32(0.05), "zx": np.int8(0)} | others


@dataclass(frozen=True)
class Case:
    """A graph and what becomes of it.

    Attributes:
        source: where NVIDIA says so.
        refused: what our checker says of it; empty where it is legal.
        builder: what NVIDIA's builder does with it; it takes more than it documents, and more than pays.
    """

    text: str
    weights: Arrays
    source: str
    refused: str = ""
    builder: Literal["takes", "refuses", "dies"] = "takes"
    opset: int = 21

    def model(self) -> onnx.ModelProto:
        return ir.to_proto(model_of(head(self.opset) + self.text, self.weights))


_QUANTIZED_CONV = _CONV + f"{{ {_X}{_WEIGHT}y = Conv <{_PADDED}> (b, w) }}"
_QUANTIZED_PRODUCT = _PRODUCT + f"{{ {_X}w = DequantizeLinear <axis = 1> (wq, sw, zw) y = MatMul (b, w) }}"
_BLOCKS = _PRODUCT + "{ w = DequantizeLinear <axis = 0, block_size = SIZE> (wq, sw) y = MatMul (x, w) }"


def _blocked(size: int, dtype: Any = _INT4) -> Arrays:
    codes = _int8(64, 32).clip(-7, 7).astype(dtype)
    return {"wq": codes, "sw": np.full((64 // size, 32), 0.1, np.float32)}


CASES: dict[str, Case] = {
    "int8 convolution": Case(_QUANTIZED_CONV, _conv_weights(), GUIDE),
    "int8 product": Case(_QUANTIZED_PRODUCT, _product_weights(), GUIDE),
    "one scale for a weight": Case(
        _QUANTIZED_CONV, _conv_weights(sw=np.float32(0.01), zw=np.int8(0)), GUIDE
    ),
    "no zero points": Case(
        _CONV + f"{{ a = QuantizeLinear <output_dtype = 3> (x, sx) b = DequantizeLinear (a, sx) "
        f"w = DequantizeLinear <axis = 0> (wq, sw) y = Conv <{_PADDED}> (b, w) }}",
        _conv_weights(), PARSER,
    ),
    "float weight behind both conversions": Case(
        _CONV + f"{{ {_X}q = QuantizeLinear <axis = 0> (wf, sw, zw) w = DequantizeLinear <axis = 0> (q, sw, zw) "
        f"y = Conv <{_PADDED}> (b, w) }}",
        _conv_weights(wf=normal(8, 8, 3, 3)), GUIDE,
    ),
    "float bias": Case(
        _CONV + f"{{ {_X}{_WEIGHT}y = Conv <{_PADDED}> (b, w, bias) }}", _conv_weights(bias=normal(8)), GUIDE
    ),
    "float16 scales": Case(
        _CONV + f"{{ h = Cast <to = 10> (x) a = QuantizeLinear (h, sx, zx) b = DequantizeLinear (a, sx, zx) {_WEIGHT}"
        f"c = Conv <{_PADDED}> (b, w) y = Cast <to = 1> (c) }}",
        _conv_weights(sx=np.float16(0.05), sw=np.full(8, 0.01, np.float16)), PARSER,
    ),
    "int64 beside the codes": Case(
        "g (float[1,8,8,8] x, int64[2] at) => (float[1,8,8,8] y, int64[2] n) "
        f"{{ {_X}{_WEIGHT}y = Conv <{_PADDED}> (b, w) n = Add (at, at) }}",
        _conv_weights(), OPERATORS,
    ),
    "uint8 activations": Case(
        _QUANTIZED_CONV, _conv_weights(zx=np.uint8(0)), PARSER, "uint8 codes"
    ),
    "uint8 weights": Case(
        _QUANTIZED_CONV, _conv_weights(wq=np.abs(_int8(8, 8, 3, 3)).astype(np.uint8), zw=np.zeros(8, np.uint8)), PARSER,
        "uint8 codes", builder="refuses",
    ),
    "zero point of an activation": Case(
        _QUANTIZED_CONV, _conv_weights(zx=np.int8(3)), PARSER, "its zero point is not 0", builder="refuses"
    ),
    "zero point of a weight": Case(
        _QUANTIZED_CONV, _conv_weights(zw=np.full(8, 2, np.int8)), PARSER, "zero point", builder="refuses"
    ),
    "scale of zero": Case(
        _QUANTIZED_CONV, _conv_weights(sx=np.float32(0)), PARSER, "its scale is not positive", builder="refuses"
    ),
    "negative scale": Case(
        _QUANTIZED_CONV, _conv_weights(sw=np.full(8, -0.01, np.float32)), PARSER, "its scale is not positive",
        builder="refuses",
    ),
    "scale that is computed": Case(
        "g (float[1,8,8,8] x, float s) => (float[1,8,8,8] y) { a = QuantizeLinear (x, s, zx) "
        f"b = DequantizeLinear (a, s, zx) {_WEIGHT}y = Conv <{_PADDED}> (b, w) }}",
        _conv_weights(), DEQUANTIZE, "its scale is not a constant", builder="dies",
    ),
    "activation with a scale for each channel": Case(
        _CONV + "{ a = QuantizeLinear <axis = 1> (x, sx, zx) b = DequantizeLinear <axis = 1> (a, sx, zx) "
        f"{_WEIGHT}y = Conv <{_PADDED}> (b, w) }}",
        _conv_weights(sx=np.full(8, 0.05, np.float32), zx=np.zeros(8, np.int8)), PARSER,
        "an activation with more than one scale",
    ),
    "weight with scales along its inputs": Case(
        _CONV + f"{{ {_X}w = DequantizeLinear <axis = 1> (wq, sw, zw) y = Conv <{_PADDED}> (b, w) }}",
        _conv_weights(), GUIDE, "scales along axis 1",
    ),
    "scales of another number": Case(
        _QUANTIZED_CONV, _conv_weights(sw=np.full(4, 0.01, np.float32), zw=np.zeros(4, np.int8)), PARSER,
        "not one scale for each channel", builder="refuses",
    ),
    "integer bias": Case(
        _CONV + f"{{ {_X}{_WEIGHT}d = DequantizeLinear <axis = 0> (bq, sb) y = Conv <{_PADDED}> (b, w, d) }}",
        _conv_weights(bq=np.ones(8, np.int32), sb=np.full(8, 0.0005, np.float32)), GUIDE,
        "a DequantizeLinear on its bias", builder="refuses",
    ),
    "integer bias behind a product": Case(
        _PRODUCT + f"{{ {_X}w = DequantizeLinear <axis = 1> (wq, sw, zw) m = MatMul (b, w) "
        "d = DequantizeLinear <axis = 0> (bq, sb) y = Add (m, d) }",
        _product_weights(bq=np.ones(32, np.int32), sb=np.full(32, 0.0005, np.float32)), PARSER, "int32 codes",
        builder="refuses",
    ),
    "float weight": Case(
        _CONV + f"{{ {_X}y = Conv <{_PADDED}> (b, wf) }}", _conv_weights(wf=normal(8, 8, 3, 3)), GUIDE,
        "its activation is quantized, its weight is not",
    ),
    "int8 weight alone": Case(
        _CONV + f"{{ {_WEIGHT}y = Conv <{_PADDED}> (x, w) }}", _conv_weights(), GUIDE,
        "its weight is quantized, its activation is not",
    ),
    "int4 weight in blocks": Case(_BLOCKS.replace("SIZE", "64"), _blocked(64), GUIDE),
    "int4 weight in short blocks": Case(_BLOCKS.replace("SIZE", "16"), _blocked(16), GUIDE),
    "int8 weight of a product alone": Case(
        _PRODUCT + "{ w = DequantizeLinear <axis = 1> (wq, sw, zw) y = MatMul (x, w) }", _product_weights(), DEQUANTIZE
    ),
    "int4 weight in blocks of two axes": Case(
        _PRODUCT + "{ w = DequantizeLinear <axis = 0, block_size = 16> (wq, sw) y = MatMul (x, w) }",
        {"wq": np.ones((64, 32), _INT4), "sw": np.full((4, 16), 0.1, np.float32)}, PARSER, "its blocks do not divide",
        builder="refuses",
    ),
    "int8 weight in blocks": Case(
        _BLOCKS.replace("SIZE", "32"), _blocked(32, np.int8), DEQUANTIZE, "8-bit codes in blocks"
    ),
    "int4 activation": Case(
        _PRODUCT + "{ a = QuantizeLinear <output_dtype = 22> (x, sx) b = DequantizeLinear (a, sx) "
        "w = DequantizeLinear <axis = 1> (wq, sw, zw) y = MatMul (b, w) }",
        _product_weights(), GUIDE, "int4 codes",
    ),
    "4-bit weight of an odd size": Case(
        "g (float[4,5] x) => (float[4,3] y) { w = DequantizeLinear <axis = 1> (wq, sw) y = MatMul (x, w) }",
        {"wq": np.ones((5, 3), _INT4), "sw": np.full(3, 0.1, np.float32)}, PARSER, "odd number of elements",
        builder="refuses",
    ),
    "fp8 product": Case(
        _QUANTIZED_PRODUCT,
        _product_weights(wq=normal(64, 32).astype(_FP8), zw=np.zeros(32, _FP8), zx=np.array(0, _FP8)), GUIDE,
    ),
    "fp8 convolution": Case(
        _QUANTIZED_CONV,
        _conv_weights(wq=normal(8, 8, 3, 3).astype(_FP8), zw=np.zeros(8, _FP8), zx=np.array(0, _FP8)), GUIDE,
    ),
    "fp8 of the other kind": Case(
        _QUANTIZED_PRODUCT,
        _product_weights(
            wq=normal(64, 32).astype(ml_dtypes.float8_e5m2), zw=np.zeros(32, ml_dtypes.float8_e5m2),
            zx=np.array(0, ml_dtypes.float8_e5m2),
        ),
        GUIDE, "float8e5m2 codes", builder="refuses",
    ),
    "residual": Case(
        _CONV + f"{{ {_X}{_WEIGHT}c = Conv <{_PADDED}> (b, w) y = Add (c, b) }}", _conv_weights(), GUIDE
    ),
    "lopsided addition": Case(
        "g (float[1,8,8,8] x, float[1,8,8,8] z) => (float[1,8,8,8] y) { " + _X + "y = Add (b, z) }",
        _conv_weights(), GUIDE, "one branch of an Add",
    ),
    "concatenation of two scales": Case(
        "g (float[1,4,8,8] x, float[1,4,8,8] z) => (float[1,8,8,8] y) { " + _X + "c = QuantizeLinear (z, sz, zx) "
        f"d = DequantizeLinear (c, sz, zx) j = Concat <axis = 1> (b, d) e = QuantizeLinear (j, sx, zx) "
        f"k = DequantizeLinear (e, sx, zx) {_WEIGHT}y = Conv <{_PADDED}> (k, w) }}",
        _conv_weights(sz=np.float32(0.02)), GUIDE, "scales around this Concat differ",
    ),
    "concatenation of one scale": Case(
        "g (float[1,4,8,8] x, float[1,4,8,8] z) => (float[1,8,8,8] y) { " + _X + "c = QuantizeLinear (z, sx, zx) "
        f"d = DequantizeLinear (c, sx, zx) j = Concat <axis = 1> (b, d) e = QuantizeLinear (j, sx, zx) "
        f"k = DequantizeLinear (e, sx, zx) {_WEIGHT}y = Conv <{_PADDED}> (k, w) }}",
        _conv_weights(), GUIDE,
    ),
    "transposed convolution": Case(
        "g (float[1,8,8,8] x) => (float[1,8,10,10] y) { " + _X + "w = DequantizeLinear <axis = 1> (wq, sw, zw) "
        "y = ConvTranspose (b, w) }",
        _conv_weights(), GUIDE,
    ),
    "transposed convolution of groups": Case(
        "g (float[1,8,8,8] x) => (float[1,8,10,10] y) { " + _X + "w = DequantizeLinear (wq, sw, zw) "
        "y = ConvTranspose <group = 4> (b, w) }",
        _conv_weights(wq=_int8(8, 2, 3, 3), sw=np.float32(0.01), zw=np.int8(0)),
        "github.com/NVIDIA/TensorRT/issues/1934: from 10.9 on",
    ),
    "convolution along one axis": Case(
        "g (float[1,8,16] x) => (float[1,8,16] y) { " + _X + _WEIGHT + "y = Conv <pads = [1, 1]> (b, w) }",
        _conv_weights(wq=_int8(8, 8, 3)), PARSER,
    ),
    "integer product": Case(
        "g (int8[4,64] x) => (int32[4,32] y) { y = MatMulInteger (x, wq) }", _product_weights(), OPERATORS,
        "no kernel on tensorrt", builder="refuses",
    ),
    "scales found as it runs": Case(
        "g (float[4,64] x) => (float[4,64] y) { a, s, z = DynamicQuantizeLinear (x) y = DequantizeLinear (a, s, z) }",
        {}, OPERATORS, "DynamicQuantizeLinear", builder="refuses",
    ),
    "float64": Case(
        "g (double[4,64] x) => (double[4,64] y) { y = Mul (x, x) }", {}, OPERATORS, "float64"
    ),
    "an opset too new": Case("g (float[4] x) => (float[4] y) { y = Relu (x) }", {}, OPERATORS, "opset 26", opset=26),
}  # fmt: skip


def main(folder: Path) -> None:
    """What the builder says of each case that it survives: nothing where it makes an engine."""
    said = {}
    for name, case in CASES.items():
        if case.builder != "dies":
            onnx.save(case.model(), folder / "case.onnx")
            found = engine_builder._build(str(folder / "case.onnx"), {})
            said[name] = found["fault"] or "; ".join(refusal["reason"] for refusal in found["refused"])
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
