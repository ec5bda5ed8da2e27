"""How ONNX Runtime's CPU provider keeps weights alone as codes.

Times: ONNX Runtime 1.31.1, one thread of an AMD EPYC (Zen 4, AVX-512 VNNI), 576 x 1536 times one row and times 128, in
microseconds (`benchmarks/weight_kernels.py`); float takes 50 and 2150. Zero points cost no time at any size.
"""

from __future__ import annotations

from qcompile.compiler.formats import (
    FP8_E4M3,
    FP8_E5M2,
    INT2,
    INT4,
    INT8,
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    NF4,
    NVFP4,
    UINT2,
    UINT4,
    UINT8,
    NumericFormat,
    Scales,
)
from qcompile.compiler.plan import Form
from qcompile.compiler.targets.conditions import MATRIX_WEIGHT
from qcompile.compiler.targets.storage import Storage
from qcompile.compiler.targets.table import Condition, Lowering

LINEAR = ("MatMul", "Gemm")
BLOCKS: tuple[int | None, ...] = (16, 32, 64, 128, 256, None)
_RUN = "run: "
_RESTORED = _RUN + "the runtime restores the weights when it loads the model: time and memory are those of float"


_WIDE = Condition(
    "it has fewer than 16 input channels in a group: too few for a block of codes",
    lambda n: n.inputs[1] is None or n.inputs[1].shape is None or int(n.inputs[1].shape.numpy()[1]) >= 16,
)

_EMULATED: tuple[tuple[tuple[NumericFormat, ...], tuple[int | None, ...], Scales | None], ...] = (
    ((INT4, UINT4, INT2, UINT2, INT8, UINT8), (32, *BLOCKS), Scales.FLOAT16),
    ((NF4,), (64, *BLOCKS), Scales.DOUBLE),
    ((FP8_E4M3, FP8_E5M2), (None, *BLOCKS), None),
    ((MXFP4, MXFP6_E2M3, MXFP6_E3M2, MXFP8_E4M3, MXFP8_E5M2), (32,), None),
    ((NVFP4,), (16,), None),
)


def emulated(evidence: str) -> tuple[Storage, ...]:
    """Codes in the file, float weights in memory: for every format that no kernel reads, and for convolutions."""
    return tuple(
        Storage(
            op_types=op_types,
            formats=formats,
            blocks=blocks,
            lowering=Lowering.EMULATED,
            kernels=kernels,
            scales=scales,
            conditions=conditions,
            evidence=evidence,
        )
        for op_types, kernels, conditions in (
            ((*LINEAR, "Gather"), (*LINEAR, "Gather"), ()),
            (("Conv",), ("Conv", "FusedConv"), (_WIDE,)),
        )
        for formats, blocks, scales in _EMULATED
    )


CPU_STORAGES = (
    Storage(
        op_types=LINEAR,
        formats=(INT4, UINT4),
        blocks=(32, *BLOCKS),
        lowering=Lowering.BLOCKS,
        kernels=("MatMulNBits",),
        forms=(Form.BLOCKS, Form.WEIGHTS),
        symmetric=(False, True),
        full_range=True,
        scales=Scales.FLOAT16,
        conditions=(MATRIX_WEIGHT,),
        evidence=_RUN
        + "in blocks of 32, 64 and 128 with int8 inputs 24, 22 and 19 for one row, 1970, 1900 and 1450 for "
        "128; with float inputs 68 and 2280. SmolLM2 loses half as much in blocks of 32 as of 128, so 32 is the usual; "
        "rounded to nearest its perplexity rises by 15 % with zero points and by 21 % without",
    ),
    Storage(
        op_types=LINEAR,
        formats=(INT8, UINT8),
        blocks=(32, *BLOCKS),
        lowering=Lowering.BLOCKS,
        kernels=("MatMulNBits",),
        forms=(Form.BLOCKS,),
        scales=Scales.FLOAT16,
        conditions=(MATRIX_WEIGHT,),
        evidence=_RUN
        + "in blocks of 32, 64 and 128 with int8 inputs 23, 22 and 22 for one row, 1750, 1450 and 1360 for "
        "128; SmolLM2's perplexity rises by 0.3 % in blocks of 32, by 0.9 % in those of 64. With float inputs 1100 to "
        "2100 for one row, so they are not offered: the weights are restored instead",
    ),
    Storage(
        op_types=LINEAR,
        formats=(INT2, UINT2),
        blocks=(64, *BLOCKS),
        lowering=Lowering.BLOCKS,
        kernels=("MatMulNBits",),
        forms=(Form.BLOCKS,),
        full_range=True,
        scales=Scales.FLOAT16,
        conditions=(MATRIX_WEIGHT,),
        evidence=_RUN
        + "in blocks of 64 with int8 inputs 28 for one row and 2500 for 128, in blocks of 32 38 and 12000; "
        "with float inputs 1800 for one row",
    ),
    Storage(
        op_types=("Gather",),
        formats=(INT4, UINT4, INT8, UINT8, INT2, UINT2),
        blocks=(32, *BLOCKS),
        lowering=Lowering.BLOCK_ROWS,
        kernels=("GatherBlockQuantized",),
        forms=(Form.ROWS,),
        full_range=True,
        scales=Scales.FLOAT16,
        evidence=_RUN + "128 rows of 576 take 42 with 8 bits, 78 with 4, 13 in float; one row takes 5 in each",
    ),
    *emulated(
        _RESTORED + ". MatMulBnb4, which has NF4, restores them in every run: 470 for one row. A 1 x 1 convolution as "
        "MatMulNBits between two Transposes takes 0.8 of its time in float with 320 to 512 input channels, 1.5 with 64"
    ),
    Storage(
        op_types=("Conv",),
        formats=(INT8, UINT8),
        blocks=(None,),
        lowering=Lowering.EMULATED,
        kernels=("Conv", "FusedConv"),
        evidence=_RESTORED,
    ),
)
