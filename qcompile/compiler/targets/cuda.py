"""What the CUDA provider of stock ONNX Runtime executes of int8: conversions and one unfused product.

Q/DQ around a float operator stays just that on CUDA, a float kernel with conversions before and after,
so nothing of int8-static is placed here. `LANDINGS` says where each quantized operator ends up; the
lowering of formats that do pay on CUDA, and the explanation a user gets, rest on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from qcompile.compiler.formats import INT8
from qcompile.compiler.graph import is_constant
from qcompile.compiler.plan import Form
from qcompile.compiler.targets.conditions import (
    CONSTANT_BIAS,
    CONSTANT_WEIGHT,
    LOOKS_UP_ROWS,
    MATRIX_WEIGHT,
    PLAIN_GEMM,
    ROW_BIAS,
    gemm_axis,
    last_axis,
    weight_is_second,
)
from qcompile.compiler.targets.half import CUDA_HALF
from qcompile.compiler.targets.table import Cost, Formats, Lowering, Merging, PlacementRule, Row, Target

_PLACED = "placement by the CUDA provider of ONNX Runtime 1.31.1"


class Lands(StrEnum):
    """Who executes an operator in a session of the CUDA provider."""

    CUDA = "CUDAExecutionProvider"
    CPU = "CPUExecutionProvider"
    THROWS = "CUDAExecutionProvider takes it and throws"
    NOWHERE = "the session fails"


@dataclass(frozen=True)
class Landing:
    """One operator with one choice of element types, and where it runs.

    Attributes:
        case: the choice, in the words of `tests/targets/test_cuda_placement.py`, which tries each one.
    """

    op_type: str
    case: str
    lands: Lands
    domain: str = ""
    evidence: str = _PLACED


_MS = "com.microsoft"
LANDINGS = (
    *(
        Landing(op_type, case, Lands.CUDA)
        for op_type in ("QuantizeLinear", "DequantizeLinear")
        for case in ("int8", "uint8", "int4", "uint4", "fp8-e4m3", "fp8-e5m2", "int8 per axis")
    ),
    Landing("QuantizeLinear", "int16", Lands.CPU),
    Landing("DequantizeLinear", "int16", Lands.CPU),
    Landing("DequantizeLinear", "int32", Lands.CPU),
    Landing("DequantizeLinear", "int4 blocked", Lands.CUDA),
    Landing("DequantizeLinear", "int8 blocked", Lands.THROWS),
    Landing("DequantizeLinear", "int8, bfloat16 scale", Lands.NOWHERE),
    Landing("MatMulInteger", "int8 x int8", Lands.CUDA),
    Landing("MatMulInteger", "uint8 x int8", Lands.CPU),
    Landing("ConvInteger", "uint8 x int8", Lands.CPU),
    Landing("QLinearMatMul", "int8 x int8", Lands.CPU),
    Landing("QLinearConv", "uint8 x int8", Lands.CPU),
    Landing("DynamicQuantizeLinear", "uint8", Lands.CPU),
    Landing("QGemm", "uint8 x int8", Lands.CPU, _MS),
    Landing("DynamicQuantizeMatMul", "int8", Lands.CPU, _MS),
    Landing("MatMulIntegerToFloat", "uint8 x int8", Lands.CPU, _MS),
    Landing("MatMulNBits", "int4 block 32", Lands.CUDA, _MS),
    Landing("MatMulNBits", "int8 block 32, bias", Lands.CUDA, _MS),
    Landing("Gather", "int8 rows", Lands.CUDA),
    Landing("Cast", "int8 to float", Lands.CUDA),
)

_LINEAR: dict[str, Any] = {
    "float_cost": Cost(),
    "forms": {Form.WEIGHTS: Cost()},
    "kernels": ("MatMulNBits",),
    "evidence": _PLACED + "; weights are read as int8, products are float, and nothing goes to the host",
    "activations": (0,),
    "weight": 1,
    "lowering": {Form.WEIGHTS: Lowering.BLOCKS},
}
"""What the rows of linear layers have in common."""

CUDA = Target(
    name="cuda",
    providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
    formats=(Formats(INT8, INT8, symmetric=(True,), evidence=_PLACED),),
    quantize=Cost(),
    dequantize=Cost(),
    merging=Merging(
        multiple=8,
        activations=frozenset({"Relu", "Gelu", "Silu"}),
        evidence="by count, not timed: one product and a Split start in the place of three products; one product "
        "fills a device that the small ones of few rows do not",
    ),
    placement=PlacementRule.WEIGHTED_INPUTS,
    rows=(
        Row(
            op_type="MatMul",
            variant="constant weight",
            selects=weight_is_second,
            weight_axis=last_axis,
            conditions=(MATRIX_WEIGHT,),
            **_LINEAR,
        ),
        Row(
            op_type="Gemm",
            bias=2,
            weight_axis=gemm_axis,
            conditions=(CONSTANT_WEIGHT, CONSTANT_BIAS, ROW_BIAS, PLAIN_GEMM),
            **_LINEAR,
        ),
        Row(
            op_type="Gather",
            variant="rows of a constant table",
            selects=lambda n: is_constant(n.inputs[0]),
            float_cost=Cost(),
            forms={Form.ROWS: Cost()},
            kernels=("Gather",),
            evidence=_PLACED,
            weight=0,
            weight_axis=lambda _: 0,
            lowering={Form.ROWS: Lowering.ROWS},
            conditions=LOOKS_UP_ROWS,
        ),
    ),
    half=CUDA_HALF,
    evidence=_PLACED,
    refusal=(
        "ONNX Runtime's CUDA provider has no int8 kernel for Q/DQ graphs: it computes in float and converts "
        "before and after, which is slower than the float model. For int8 on NVIDIA use --target tensorrt, or the "
        "recipe int8-dynamic, which stores the weights of linear layers as int8"
    ),
)
