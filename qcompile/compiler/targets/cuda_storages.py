"""How ONNX Runtime's CUDA provider keeps weights alone as codes."""

from __future__ import annotations

from qcompile.compiler.formats import FP8_E4M3, INT2, INT4, INT8, NF4, NVFP4, UINT2, UINT4, UINT8, Scales
from qcompile.compiler.plan import Form
from qcompile.compiler.targets.conditions import MATRIX_WEIGHT
from qcompile.compiler.targets.cpu_storages import BLOCKS, LINEAR, emulated
from qcompile.compiler.targets.storage import Storage
from qcompile.compiler.targets.table import Lowering

_PLACED = "placement by the CUDA provider of ONNX Runtime 1.31.1"
_SMALL = (
    "; up to 16 rows one kernel reads the codes, more rows restore the whole weight in every run (the runtime's "
    "sources), not timed"
)

CUDA_STORAGES = (
    Storage(
        op_types=LINEAR,
        formats=(INT4, UINT4),
        blocks=(32, 64, 128),
        lowering=Lowering.OPERATOR,
        kernels=("LinearW4A16", "DequantizeLinear"),
        symmetric=(False, True),
        full_range=True,
        scales=Scales.FLOAT16,
        whole_blocks=True,
        opset=21,
        conditions=(MATRIX_WEIGHT,),
        evidence=_PLACED
        + "; our kernel never writes a weight as a float, whatever the number of rows (docs/gpu-kernels.md), "
        "where MatMulNBits does for more than 16. Not timed. "
        "Zero points for accuracy, see cpu. Without the library of kernels its body runs",
    ),
    Storage(
        op_types=LINEAR,
        formats=(INT4, UINT4, INT2, UINT2),
        blocks=(32, *BLOCKS),
        lowering=Lowering.BLOCKS,
        kernels=("MatMulNBits",),
        full_range=True,
        scales=Scales.FLOAT16,
        conditions=(MATRIX_WEIGHT,),
        evidence=_PLACED + _SMALL,
    ),
    Storage(
        op_types=LINEAR,
        formats=(INT8, UINT8),
        blocks=(32, *BLOCKS),
        lowering=Lowering.BLOCKS,
        kernels=("MatMulNBits",),
        scales=Scales.FLOAT16,
        conditions=(MATRIX_WEIGHT,),
        evidence=_PLACED + _SMALL,
    ),
    Storage(
        op_types=LINEAR,
        formats=(FP8_E4M3,),
        blocks=(128, 32),
        lowering=Lowering.BLOCK_FP8,
        kernels=("MatMulBlockQuantizedFp8Weight",),
        whole_blocks=True,
        conditions=(MATRIX_WEIGHT,),
        evidence=_PLACED,
    ),
    Storage(
        op_types=LINEAR,
        formats=(NVFP4,),
        blocks=(16,),
        lowering=Lowering.BLOCK_FP4,
        kernels=("MatMulBlockQuantizedFp4Weight",),
        whole_blocks=True,
        conditions=(MATRIX_WEIGHT,),
        evidence=_PLACED,
    ),
    Storage(
        op_types=LINEAR,
        formats=(NF4,),
        blocks=(64, 16, 32, 128, 256),
        lowering=Lowering.BNB4,
        kernels=("MatMulBnb4",),
        scales=Scales.DOUBLE,
        whole_blocks=True,
        conditions=(MATRIX_WEIGHT,),
        evidence=_PLACED,
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
        evidence=_PLACED,
    ),
    *emulated("the runtime restores the weights when it loads the model: less on disk alone"),
)
