"""What TensorRT's builder takes as explicit quantization, and where it wants the Q/DQ pairs.

The builder chooses kernels itself, so the rows carry no costs: int8 is asked for at the inputs of every
weighted operator, and the builder fuses biases, activations and outputs. A residual Add fuses into the
convolution before it when the other branch, the shortcut, arrives as int8.
"""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.formats import FP8_E4M3, INT4, INT8
from qcompile.compiler.graph import is_constant, rank
from qcompile.compiler.plan import Form
from qcompile.compiler.targets.conditions import (
    CONSTANT_WEIGHT,
    MATRIX_WEIGHT,
    PLAIN_GEMM,
    gemm_axis,
    last_axis,
    weight_is_second,
)
from qcompile.compiler.targets.half import TENSORRT_HALF
from qcompile.compiler.targets.storage import Storage
from qcompile.compiler.targets.table import Condition, Cost, Formats, Lowering, PlacementRule, Row, Target
from qcompile.compiler.targets.tensorrt_rules import RULES
from qcompile.compiler.targets.tensorrt_ways import TENSORRT_PROVIDER, WAYS

_RULES = "documentation: TensorRT 10.14, 'Working with Quantized Types', explicit quantization"
_BUILT = "seen in engines of TensorRT-RTX 1.7.1 for compute capability 8.9"
_FLOAT_TRANSPOSED = (
    "TensorRT-RTX computes it in float between conversions, and int8 ones of TensorRT were slower than float16 "
    "(github.com/NVIDIA/TensorRT/issues/1699)"
)
_UNWEIGHED = Cost()
_LINEAR = ("MatMul", "Gemm")
_INT8_INPUTS = {Form.INPUTS: _UNWEIGHED}


def _leaves_weighted_operator(value: ir.Value | None) -> bool:
    """Whether a convolution writes `value` for one reader, so that an Add there can join its kernel."""
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == "Conv" and value is not None and len(value.uses()) == 1


def _shortcut_is_second(node: ir.Node) -> bool:
    return _leaves_weighted_operator(node.inputs[0]) and not is_constant(node.inputs[1])


def _shortcut_is_first(node: ir.Node) -> bool:
    return _leaves_weighted_operator(node.inputs[1]) and not is_constant(node.inputs[0])


_MATRIX = Condition("its weight is a vector", lambda n: (rank(n.inputs[1]) or 0) >= 2)


def _residual(shortcut: int) -> Row:
    return Row(
        op_type="Add",
        variant=f"residual, shortcut at input {shortcut}",
        selects=_shortcut_is_second if shortcut == 1 else _shortcut_is_first,
        float_cost=_UNWEIGHED,
        forms=_INT8_INPUTS,
        kernels=("Add",),
        evidence=_RULES + ": quantize the residual input, so that convolution and Add become one kernel",
        activations=(shortcut,),
    )


TENSORRT = Target(
    name="tensorrt",
    providers=(TENSORRT_PROVIDER, "CUDAExecutionProvider", "CPUExecutionProvider"),
    ways=WAYS,
    rules=RULES,
    half=TENSORRT_HALF,
    opset=19,  # QuantizeLinear reads float16
    highest_opset=24,  # onnx-tensorrt, docs/operators.md (TensorRT 10.15)
    formats=(
        Formats(INT8, INT8, symmetric=(True,), evidence=_RULES),
        Formats(
            FP8_E4M3,
            FP8_E4M3,
            symmetric=(True,),
            evidence=_RULES + ": FP8 is E4M3",
        ),
    ),
    quantize=_UNWEIGHED,
    dequantize=_UNWEIGHED,
    placement=PlacementRule.WEIGHTED_INPUTS,
    float_bias=True,
    unify_concat=True,
    evidence=_RULES,
    storages=(
        Storage(
            op_types=_LINEAR,
            formats=(INT4,),
            blocks=(128, 64, 32, 16),
            lowering=Lowering.BLOCKED_DQ,
            kernels=_LINEAR,
            symmetric=(True,),
            whole_blocks=True,
            opset=21,
            conditions=(MATRIX_WEIGHT,),
            evidence=_BUILT
            + ": one layer reads int4 in blocks of 16 to 128 along what is summed over; where a channel is one "
            "block a kernel of its own restores the weight, as it does for the projection behind attention over a "
            "single sequence",
        ),
        Storage(
            op_types=_LINEAR,
            formats=(INT8, FP8_E4M3),
            blocks=(None,),
            lowering=Lowering.BLOCKED_DQ,
            kernels=_LINEAR,
            symmetric=(True,),
            opset=19,
            conditions=(MATRIX_WEIGHT,),
            evidence=_BUILT
            + ": one layer reads the codes, with a scale for each output channel; in blocks a kernel of "
            "its own restores the weight",
        ),
    ),
    rows=(
        Row(
            op_type="Conv",
            float_cost=_UNWEIGHED,
            forms=_INT8_INPUTS,
            kernels=("Conv",),
            evidence=_RULES + ": weights per output channel (axis 0); with int8 and FP8 codes " + _BUILT,
            activations=(0,),
            weight=1,
            weight_axis=lambda _: 0,
            bias=2,
            conditions=(CONSTANT_WEIGHT,),
        ),
        Row(
            op_type="ConvTranspose",
            float_cost=_UNWEIGHED,
            forms={},
            kernels=("ConvTranspose",),
            evidence=_BUILT,
            activations=(0,),
            weight=1,
            refused={Form.INPUTS: _FLOAT_TRANSPOSED, Form.DYNAMIC: _FLOAT_TRANSPOSED},
        ),
        Row(
            op_type="Gemm",
            float_cost=_UNWEIGHED,
            forms=_INT8_INPUTS,
            kernels=("Gemm",),
            evidence=_RULES,
            activations=(0,),
            weight=1,
            weight_axis=gemm_axis,
            bias=2,
            conditions=(CONSTANT_WEIGHT, PLAIN_GEMM),
        ),
        Row(
            op_type="MatMul",
            variant="constant weight",
            selects=weight_is_second,
            float_cost=_UNWEIGHED,
            forms=_INT8_INPUTS,
            kernels=("MatMul",),
            evidence=_RULES,
            activations=(0,),
            weight=1,
            weight_axis=last_axis,
            conditions=(_MATRIX,),
        ),
        Row(
            op_type="MatMul",
            variant="two activations",
            on_request=True,
            float_cost=_UNWEIGHED,
            forms=_INT8_INPUTS,
            kernels=("MatMul",),
            evidence=_RULES,
            activations=(0, 1),
        ),
        _residual(shortcut=1),
        _residual(shortcut=0),
    ),
)
