"""What runs in int8 and FP8 on the CUDA provider: linear layers, by operators of our own.

Stock ONNX Runtime has conversions and one unfused product there: Q/DQ around a float operator stays a float
kernel with conversions before and after. So linear layers become operators of the domain `qcompile`, whose
bodies consist of what `LANDINGS` says stays on the device, and nothing is written in Q/DQ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import onnx_ir as ir

from qcompile.compiler.formats import FP8_E4M3, INT4, INT8
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
from qcompile.compiler.targets.cuda_storages import CUDA_STORAGES
from qcompile.compiler.targets.half import CUDA_HALF
from qcompile.compiler.targets.table import (
    Caches,
    Cost,
    Formats,
    Lowering,
    Merging,
    PlacementRule,
    Row,
    SparseProducts,
    Target,
)

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
    *(
        Landing("MatMulNBits", case, Lands.CUDA, _MS)
        for case in (
            "int4 block 32",
            "int4 block 128, zero points",
            "int2 block 64",
            "int8 block 32, bias",
            "int8 block 256",
        )
    ),
    *(Landing("MatMulBlockQuantizedFp8Weight", f"block {size}", Lands.CUDA, _MS) for size in (32, 128)),
    Landing("MatMulBlockQuantizedFp4Weight", "block 16", Lands.CUDA, _MS),
    Landing("MatMulBnb4", "nf4 block 64", Lands.CUDA, _MS),
    *(Landing("GatherBlockQuantized", f"int{bits} block 32", Lands.CUDA, _MS) for bits in (2, 4, 8)),
    Landing("Gather", "int8 rows", Lands.CUDA),
    Landing("Cast", "int8 to float", Lands.CUDA),
)

_TILE_K, _TILE_N = 16, 8
"""Weights of tensor-core kernels: 16 bytes of a row are read at once, and 8 outputs are written at once."""

_KERNEL = (
    "not measured: the kernel exists since 0.1.0. By arithmetic intensity on an H100: up to some 300 rows a layer "
    "waits for its weights, of which there are half the bytes of fp16; beyond, 8-bit tensor cores multiply twice as "
    "fast as fp16 ones. Quantizing the input as it runs costs a pass over it, which then pays from some 200 outputs "
    "on (float32 around it) or 600 (fp16), counted over all layers that read it"
)
_SHAPE = f"its shape: the 8-bit kernels take weights of K a multiple of {_TILE_K} and N a multiple of {_TILE_N}"
_NO_CONVOLUTION = (
    "there is no 8-bit convolution on CUDA: ONNX Runtime would compute in float and convert before and after, which is "
    "slower than float. For convolutions use --target tensorrt"
)


def _fits_tiles(axis: Callable[[ir.Node], int]) -> Callable[[ir.Node], bool]:
    """Whether a node's constant weight [K, N], or [N, K] where `axis` says so, has a shape that the kernels take."""

    def fits(node: ir.Node) -> bool:
        weight = node.inputs[1] if weight_is_second(node) else None
        if weight is None or weight.shape is None or weight.shape.rank() != 2:
            return False
        shape, columns = weight.shape.numpy(), axis(node)
        return shape[1 - columns] % _TILE_K == 0 and shape[columns] % _TILE_N == 0

    return fits


_OPERATORS: dict[str, Any] = {
    "float_cost": Cost(),
    "forms": {Form.INPUTS: Cost(), Form.DYNAMIC: Cost()},
    "kernels": ("LinearW8A8", "LinearE4M3", "MatMulInteger"),
    "evidence": _KERNEL,
    "activations": (0,),
    "weight": 1,
    "lowering": {Form.INPUTS: Lowering.OPERATOR, Form.DYNAMIC: Lowering.OPERATOR},
}
"""What the rows of linear layers have in common; a body, inlined, shows as MatMulInteger."""

_BLOCKS: dict[str, Any] = {
    "float_cost": Cost(),
    "forms": {Form.WEIGHTS: Cost()},
    "kernels": ("MatMulNBits",),
    "evidence": _PLACED + "; weights are read as int8, products are float, and nothing goes to the host",
    "activations": (0,),
    "weight": 1,
    "lowering": {Form.WEIGHTS: Lowering.BLOCKS},
    "refused": {Form.INPUTS: _SHAPE},
}
"""The same for those of any other shape."""

_GEMM = (CONSTANT_WEIGHT, CONSTANT_BIAS, ROW_BIAS, PLAIN_GEMM)

CUDA = Target(
    name="cuda",
    providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
    formats=(
        Formats(INT8, INT8, symmetric=(True,), evidence=_KERNEL),
        Formats(FP8_E4M3, FP8_E4M3, symmetric=(True,), evidence=_KERNEL),
    ),
    quantize=Cost(),
    dequantize=Cost(),
    merging=Merging(
        multiple=8,
        activations=frozenset({"Relu", "Gelu", "Silu"}),
        evidence="by count, not timed: one product and a Split start in the place of three products; one product "
        "fills a device that the small ones of few rows do not",
    ),
    sparse=SparseProducts(
        outputs=8,
        inputs=32,
        evidence="not measured: operators `Linear24` on codes and in half precision, through cuSPARSELt, whose kernels "
        "multiply at twice the rate of dense ones and read a bit more than half the weights",
    ),
    placement=PlacementRule.WEIGHTED_INPUTS,
    float_bias=True,
    caches=(
        Caches("Concat", (INT8, INT4), _PLACED),
        Caches("GroupQueryAttention", (INT8, INT4, FP8_E4M3), _PLACED),
    ),
    storages=CUDA_STORAGES,
    rows=(
        Row(
            op_type="MatMul",
            variant="constant weight",
            selects=_fits_tiles(last_axis),
            weight_axis=last_axis,
            **_OPERATORS,
        ),
        Row(
            op_type="MatMul",
            variant="constant weight of another shape",
            selects=weight_is_second,
            weight_axis=last_axis,
            conditions=(MATRIX_WEIGHT,),
            **_BLOCKS,
        ),
        Row(
            op_type="Gemm",
            selects=_fits_tiles(gemm_axis),
            bias=2,
            weight_axis=gemm_axis,
            conditions=_GEMM,
            **_OPERATORS,
        ),
        Row(
            op_type="Gemm",
            variant="weight of another shape",
            bias=2,
            weight_axis=gemm_axis,
            conditions=_GEMM,
            **_BLOCKS,
        ),
        Row(
            op_type="Conv",
            float_cost=Cost(),
            forms={},
            kernels=("Conv",),
            evidence=_PLACED,
            activations=(0,),
            weight=1,
            refused={Form.INPUTS: _NO_CONVOLUTION, Form.DYNAMIC: _NO_CONVOLUTION},
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
    opset=19,  # QuantizeLinear reads float16
    evidence=_PLACED,
    unfused=(
        "ONNX Runtime's CUDA provider has no int8 kernel for Q/DQ graphs: it computes in float and converts before and "
        "after, which is slower than the float model. Linear layers have operators of ours; for convolutions use "
        "--target tensorrt"
    ),
)
