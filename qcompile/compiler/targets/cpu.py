"""What ONNX Runtime's CPU provider runs in int8, and what it costs.

Costs: ONNX Runtime 1.31.1, one thread of an AMD EPYC (Zen 4, AVX-512 VNNI), each kernel alone, best of
40 runs (`benchmarks/kernels.py`). A kernel that is slower in int8 than in float still has its int8
cost here: placement weighs it against the conversions it saves. Convolutions are counted as in a chain,
where the runtime keeps codes channel-last: without the two transpositions that a lone one needs.
"""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.formats import FP8_E4M3, FP8_E5M2, INT4, INT8, INT16, UINT8, UINT16
from qcompile.compiler.graph import is_constant, rank
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
from qcompile.compiler.targets.cpu_storages import CPU_STORAGES
from qcompile.compiler.targets.half import Half
from qcompile.compiler.targets.table import (
    Caches,
    Condition,
    Cost,
    Detour,
    Formats,
    Lowering,
    PlacementRule,
    Row,
    Target,
)

_ROUNDED = "run: no kernel computes on 16-bit codes; the runtime converts, computes in float and converts again"
_MEASURED = "run: optimized graph and time, ONNX Runtime 1.31.1, AVX-512 VNNI"


def _weight_dim(node: ir.Node, axis: int) -> int | None:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or weight.shape is None or weight.shape.rank() <= axis:
        return None
    dim = weight.shape[axis]
    return dim if isinstance(dim, int) else None


def _is_depthwise(node: ir.Node) -> bool:
    group = node.attributes.get_int("group", 1)
    return group > 1 and group == _weight_dim(node, 0) and _weight_dim(node, 1) == 1


def _is_one_dimensional(node: ir.Node) -> bool:
    return rank(node.inputs[1]) == 3


def _reads_an_image(node: ir.Node) -> bool:
    channels = _weight_dim(node, 1)
    return channels is not None and channels <= 4 and rank(node.inputs[1]) == 4


_IMAGE_CONV = Condition("QLinearConv takes 1-D and 2-D convolutions", lambda n: (rank(n.inputs[1]) or 0) in (3, 4))
_CONSTANT_WEIGHTS = Condition(
    "its weights are not constants", lambda n: is_constant(n.inputs[1]) and is_constant(n.inputs[2])
)
_TIME_MAJOR = Condition("the runtime has no kernel for layout 1", lambda n: n.attributes.get_int("layout", 0) == 0)
_CONV_INTEGER = (
    "ConvInteger, the only convolution that quantizes as it runs, takes 3 to 8 times as long as float and has one "
    "scale for the whole image (EfficientNet-Lite0: 79 ms, not 9; Silero VAD: area under the curve 0.80, not 0.99)"
)
_FLOAT_DATA = Condition(
    "its data is not float32", lambda n: n.inputs[0] is not None and n.inputs[0].dtype in (None, ir.DataType.FLOAT)
)

_WITHOUT_CALIBRATION = {
    Form.DYNAMIC: Cost(0.0051, 0.05, 2000, per_input=0.15, per_weight=0.0125),
    Form.BLOCKS: Cost(0.0130, 0.05, 2000, per_input=0.15, per_weight=0.0140),
}
_LOWERING = {Form.DYNAMIC: Lowering.DYNAMIC, Form.BLOCKS: Lowering.BLOCKS}


def _conv(variant: str, selects: object, float_cost: Cost, int8_cost: Cost) -> Row:
    assert callable(selects)
    return Row(
        op_type="Conv",
        variant=variant,
        selects=selects,
        float_cost=float_cost,
        forms={Form.FULL: int8_cost},
        kernels=("QLinearConv",),
        evidence=_MEASURED,
        activations=(0,),
        weight=1,
        weight_axis=lambda _: 0,
        bias=2,
        conditions=(CONSTANT_WEIGHT, CONSTANT_BIAS, _IMAGE_CONV),
        refused={Form.DYNAMIC: _CONV_INTEGER},
    )


def _moved(op_type: str, float_ns: float, int8_ns: float) -> Row:
    """An operator that moves values without computing: its codes keep their scale."""
    return Row(
        op_type=op_type,
        float_cost=Cost(per_output=float_ns, fixed=500),
        forms={Form.PASS: Cost(per_output=int8_ns, fixed=500)},
        kernels=(op_type,),
        evidence=_MEASURED,
        activations=(0,),
        same_params=True,
        conditions=(_FLOAT_DATA,),
    )


def _computed(op_type: str, kernel: str, float_ns: float, int8_ns: float, activations: tuple[int, ...] = (0,)) -> Row:
    return Row(
        op_type=op_type,
        float_cost=Cost(per_output=float_ns, fixed=1000),
        forms={Form.FULL: Cost(per_output=int8_ns, fixed=1500)},
        kernels=(kernel,),
        evidence=_MEASURED,
        activations=activations,
        conditions=(_FLOAT_DATA,),
    )


def _pooled(op_type: str, kernel: str, float_ns: float, int8_ns: float) -> Row:
    return Row(
        op_type=op_type,
        float_cost=Cost(per_input=float_ns, fixed=1000),
        forms={Form.FULL: Cost(per_input=int8_ns, fixed=1500)},
        kernels=(kernel,),
        evidence=_MEASURED,
        activations=(0,),
        conditions=(_FLOAT_DATA,),
    )


CPU = Target(
    name="cpu",
    providers=("CPUExecutionProvider",),
    half=Half(refusal="ONNX Runtime's CPU provider computes in float32 and would convert back and forth"),
    formats=(
        Formats(UINT8, INT8, evidence=_MEASURED),
        Formats(
            INT8,
            INT8,
            warning="int8 activations: on x86 ONNX Runtime multiplies them in plain loops, 8 times slower than float, "
            "where uint8 has the processor's instructions; ask for uint8 unless another device shall run the model",
            evidence="run: 384 x 1536 times 128 rows in 11.7 ms, float 1.35 ms, uint8 activations 0.38 ms",
        ),
        Formats(UINT8, UINT8, evidence="run: 384 x 1536 times 128 rows in 0.93 ms, int8 weights 0.38 ms"),
        *(
            Formats(
                fmt,
                INT8,
                symmetric=(True, False),
                computed=False,
                warning=f"smaller, not faster: no kernel computes on {fmt.name} activations; they are rounded to it, "
                "and the arithmetic stays float",
                evidence=_ROUNDED,
            )
            for fmt in (INT16, UINT16)
        ),
    ),
    refused={
        f.name: "ONNX Runtime's CPU provider fuses FP8 Q/DQ with a MatMul into a node that it cannot run, so the model "
        "does not load at default options. For 8 bits on the CPU use int8; FP8 is for --target cuda and tensorrt"
        for f in (FP8_E4M3, FP8_E5M2)
    },
    block=64,
    quantize=Cost(per_output=0.146, fixed=2000),
    dequantize=Cost(per_output=0.138, fixed=2000),
    relayout=Cost(per_output=0.10),
    swallows=frozenset({"Conv"}),
    detours=(
        Detour(
            "Add",
            "LayerNormalization",
            "Sum",
            "run: fused to SkipLayerNormalization 245 us, apart 38 us (1 x 128 x 384, one thread)",
        ),
    ),
    storages=CPU_STORAGES,
    placement=PlacementRule.MINIMUM_CUT,
    caches=(
        Caches("Concat", (INT8, INT4), "run: codes are appended, and multiplied by their scales for all readers"),
        Caches("GroupQueryAttention", (INT8, INT4), "run: the operator's own cache types, scales by head and column"),
    ),
    evidence="ONNX Runtime 1.31.1, CPUExecutionProvider",
    rows=(
        _conv("depthwise", _is_depthwise, Cost(0.020, 0.22), Cost(0.030, 0.20)),
        _conv("one-dimensional", _is_one_dimensional, Cost(0.070, 0.25, 1000), Cost(0.0065, 0.08, 1000)),
        _conv("image input", _reads_an_image, Cost(0.0175, 0.25), Cost(0.031, 0.10)),
        _conv("", lambda _: True, Cost(0.0175, 0.25), Cost(0.0048, 0.08)),
        Row(
            op_type="MatMul",
            variant="constant weight",
            selects=weight_is_second,
            float_cost=Cost(0.0176, 0.05, 1000, per_weight=0.042),
            forms={Form.INPUTS: Cost(0.0051, 0.05, 1500, per_weight=0.0125), **_WITHOUT_CALIBRATION},
            kernels=("MatMulIntegerToFloat", "QGemm", "DynamicQuantizeMatMul", "MatMulNBits"),
            evidence=_MEASURED + "; outputs are left float: the bias Add and what follows it run in float anyway",
            activations=(0,),
            weight=1,
            weight_axis=last_axis,
            conditions=(MATRIX_WEIGHT,),
            lowering={Form.INPUTS: Lowering.INTEGER_MATMUL, **_LOWERING},
        ),
        Row(
            op_type="MatMul",
            variant="two activations",
            on_request=True,
            float_cost=Cost(0.0176, 0.05, 1000),
            forms={Form.INPUTS: Cost(0.0060, 0.05, 1500), Form.FULL: Cost(0.0060, 0.10, 1500)},
            kernels=("MatMulIntegerToFloat", "QLinearMatMul"),
            evidence=_MEASURED,
            activations=(0, 1),
        ),
        Row(
            op_type="Gemm",
            float_cost=Cost(0.0176, 0.05, 1000, per_weight=0.042),
            forms={
                Form.INPUTS: Cost(0.0051, 0.05, 1500, per_weight=0.0125),
                Form.FULL: Cost(0.0051, 0.10, 1500, per_weight=0.0125),
                **_WITHOUT_CALIBRATION,
            },
            kernels=("QGemm", "DynamicQuantizeMatMul", "MatMulNBits"),
            evidence=_MEASURED,
            activations=(0,),
            weight=1,
            weight_axis=gemm_axis,
            bias=2,
            conditions=(CONSTANT_WEIGHT, CONSTANT_BIAS, ROW_BIAS, PLAIN_GEMM),
            lowering=_LOWERING,
        ),
        Row(
            op_type="LSTM",
            float_cost=Cost(0.031, 4.0, 12000),
            forms={Form.DYNAMIC: Cost(0.0100, 4.0, 13000)},
            kernels=("DynamicQuantizeLSTM",),
            evidence=_MEASURED + "; the input is quantized as a whole, the state anew at every step",
            activations=(0,),
            weight=1,
            state_weight=2,
            conditions=(_CONSTANT_WEIGHTS, _TIME_MAJOR),
            lowering={Form.DYNAMIC: Lowering.DYNAMIC_LSTM},
        ),
        Row(
            op_type="GRU",
            float_cost=Cost(0.031, 4.0, 12000),
            forms={Form.WEIGHTS: Cost(0.031, 4.0, 12000)},
            kernels=("GRU",),
            evidence="run: there is no int8 kernel of it. The file shrinks, time and memory stay: the runtime "
            "multiplies codes by scales when it loads the model. (Behind a DequantizeLinear it would do so in every "
            "run: 3 times the time for one step of 512 cells)",
            activations=(0,),
            weight=1,
            state_weight=2,
            conditions=(_CONSTANT_WEIGHTS,),
            lowering={Form.WEIGHTS: Lowering.EMULATED},
        ),
        Row(
            op_type="Gather",
            variant="rows of a constant table",
            selects=lambda n: is_constant(n.inputs[0]),
            float_cost=Cost(per_output=0.141),
            forms={Form.ROWS: Cost(per_output=0.5)},
            kernels=("Gather",),
            evidence="run: int8 rows and their scales are looked up apart; an embedding shrinks to a quarter",
            weight=0,
            weight_axis=lambda _: 0,
            lowering={Form.ROWS: Lowering.ROWS},
            conditions=LOOKS_UP_ROWS,
        ),
        _computed("Add", "QLinearAdd", 0.181, 0.169, (0, 1)),
        _computed("Mul", "QLinearMul", 0.186, 0.243, (0, 1)),
        _pooled("GlobalAveragePool", "QLinearGlobalAveragePool", 0.187, 0.055),
        _pooled("AveragePool", "QLinearAveragePool", 0.207, 2.067),
        _computed("Sigmoid", "QLinearSigmoid", 0.386, 0.268),
        _computed("LeakyRelu", "QLinearLeakyRelu", 0.185, 0.269),
        _computed("Concat", "QLinearConcat", 0.110, 0.040, ()),
        _moved("Transpose", 0.161, 0.067),
        _moved("Reshape", 0.0, 0.0),
        _moved("Flatten", 0.0, 0.0),
        _moved("Squeeze", 0.0, 0.0),
        _moved("Unsqueeze", 0.0, 0.0),
        _moved("Slice", 0.180, 0.070),
        _moved("MaxPool", 0.87, 18.0),
        _moved("Resize", 0.56, 0.84),
    ),
)
