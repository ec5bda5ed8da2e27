"""One-operator models in half precision. As a program: prints which provider takes each operator, as JSON.

In the texts T stands for the half type.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import onnx_ir as ir

TYPES = {ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}
_ONE = "g (T[2,4,8] x) => (T[?,?,?] y) {{ y = {} (x) }}"
_TWO = "g (T[2,4,8] x, T[2,4,8] z) => (T[2,4,8] y) {{ y = {} (x, z) }}"
_COMPARED = "g (T[2,4,8] x, T[2,4,8] z) => (bool[2,4,8] y) {{ y = {} (x, z) }}"
_IMAGE = "g (T[1,4,8,8] x) => (T[1,4,?,?] y) {{ y = {} (x) }}"

CASES = {
    **{
        op: _ONE.format(op)
        for op in (
            "Abs", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "LogSoftmax", "Neg",
            "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Tanh", "ThresholdedRelu", "Transpose",
            "Trilu",
        )
    },
    **{op: _TWO.format(op) for op in ("Add", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum")},
    **{op: _COMPARED.format(op) for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")},
    **{op: f"g (T[2,4,8] x) => (bool[2,4,8] y) {{ y = {op} (x) }}" for op in ("IsInf", "IsNaN")},
    "Shape": "g (T[2,4,8] x) => (int64[3] y) { y = Shape (x) }",
    "Size": "g (T[2,4,8] x) => (int64 y) { y = Size (x) }",
    **{op: _IMAGE.format(f"{op} <kernel_shape = [2, 2]>") for op in ("AveragePool", "MaxPool")},
    **{op: _IMAGE.format(op) for op in ("GlobalAveragePool", "GlobalMaxPool")},
    **{op: _IMAGE.format(f"{op} <blocksize = 2>").replace("[1,4,?,?]", "[?,?,?,?]") for op in (
        "DepthToSpace", "SpaceToDepth")},
    "Attention": "g (T[1,2,4,8] q, T[1,2,4,8] k, T[1,2,4,8] v) => (T[1,2,4,8] y) { y = Attention (q, k, v) }",
    "Cast": "g (float[4] x) => (T[4] y) { y = Cast <to = TO> (x) }",
    "Clip": "g (T[4] x) => (T[4] y) < T l = {0}, T h = {6} > { y = Clip (x, l, h) }",
    "Compress": "g (T[4,8] x, bool[4] c) => (T[?,8] y) { y = Compress <axis = 0> (x, c) }",
    "Concat": "g (T[2,8] x, T[2,8] z) => (T[4,8] y) { y = Concat <axis = 0> (x, z) }",
    "Conv": "g (T[1,4,8,8] x, T[8,4,3,3] w, T[8] b) => (T[1,8,6,6] y) { y = Conv (x, w, b) }",
    "ConvTranspose": "g (T[1,4,8,8] x, T[4,8,3,3] w) => (T[1,8,10,10] y) { y = ConvTranspose (x, w) }",
    "DequantizeLinear": "g (int8[4,8] x) => (T[4,8] y) < T s = {1}, int8 z = {0} > { y = DequantizeLinear (x, s, z) }",
    "Einsum": 'g (T[4,8] x, T[8,8] w) => (T[4,8] y) { y = Einsum <equation = "ij,jk->ik"> (x, w) }',
    "Expand": "g (T[1,8] x) => (T[4,8] y) < int64[2] s = {4, 8} > { y = Expand (x, s) }",
    "Flatten": "g (T[2,4,8] x) => (T[2,32] y) { y = Flatten (x) }",
    "Gather": "g (T[9,8] x, int64[3] i) => (T[3,8] y) { y = Gather (x, i) }",
    "GatherElements": "g (T[4,8] x, int64[4,8] i) => (T[4,8] y) { y = GatherElements (x, i) }",
    "GatherND": "g (T[4,8] x, int64[3,1] i) => (T[3,8] y) { y = GatherND (x, i) }",
    "Gemm": "g (T[4,8] x, T[8,8] w, T[8] b) => (T[4,8] y) { y = Gemm (x, w, b) }",
    "LayerNormalization": "g (T[4,8] x, T[8] s, T[8] b) => (T[4,8] y) { y = LayerNormalization (x, s, b) }",
    "MatMul": "g (T[4,8] x, T[8,8] w) => (T[4,8] y) { y = MatMul (x, w) }",
    "Pad": "g (T[4,8] x) => (T[6,8] y) < int64[4] p = {1, 0, 1, 0} > { y = Pad (x, p) }",
    "QuantizeLinear": "g (T[4,8] x) => (int8[4,8] y) < T s = {1}, int8 z = {0} > { y = QuantizeLinear (x, s, z) }",
    "RMSNormalization": "g (T[4,8] x, T[8] s) => (T[4,8] y) { y = RMSNormalization (x, s) }",
    "Reshape": "g (T[4,8] x) => (T[8,4] y) < int64[2] s = {8, 4} > { y = Reshape (x, s) }",
    "Resize": "g (T[1,4,4,4] x) => (T[1,4,8,8] y) < float[4] s = {1, 1, 2, 2} > { y = Resize (x, , s) }",
    "RotaryEmbedding": "g (T[1,2,4,8] x, T[9,4] c, T[9,4] s, int64[1,4] p) => (T[1,2,4,8] y) "
    "{ y = RotaryEmbedding (x, c, s, p) }",
    "ScatterElements": "g (T[4,8] x, int64[4,8] i, T[4,8] u) => (T[4,8] y) { y = ScatterElements (x, i, u) }",
    "ScatterND": "g (T[4,8] x, int64[1,1] i, T[1,8] u) => (T[4,8] y) { y = ScatterND (x, i, u) }",
    "Slice": "g (T[4,8] x) => (T[2,8] y) < int64[1] a = {0}, int64[1] b = {2} > { y = Slice (x, a, b) }",
    "Split": "g (T[4,8] x) => (T[2,8] y, T[2,8] z) { y, z = Split <num_outputs = 2> (x) }",
    "Squeeze": "g (T[1,8] x) => (T[8] y) < int64[1] a = {0} > { y = Squeeze (x, a) }",
    "Tile": "g (T[1,8] x) => (T[4,8] y) < int64[2] r = {4, 1} > { y = Tile (x, r) }",
    "Unsqueeze": "g (T[8] x) => (T[1,8] y) < int64[1] a = {0} > { y = Unsqueeze (x, a) }",
    "Where": "g (bool[4,8] c, T[4,8] x, T[4,8] z) => (T[4,8] y) { y = Where (c, x, z) }",
    "com.microsoft::MatMulNBits": "g (T[1,64] x, uint8[64,2,32] w, T[128] s, T[64] b) => (T[1,64] y) "
    "{ y = com.microsoft.MatMulNBits <K = 64, N = 64, bits = 8, block_size = 32> (x, w, s, , , b) }",
    "com.microsoft::MatMulBnb4": "g (T[4,64] x, uint8[512] w, T[16] s) => (T[4,16] y) "
    "{ y = com.microsoft.MatMulBnb4 <K = 64, N = 16, block_size = 64, quant_type = 1, transB = 1> (x, w, s) }",
    "com.microsoft::GatherBlockQuantized": "g (uint8[9,16] w, int64[3] i, T[9,1] s) => (T[3,32] y) "
    "{ y = com.microsoft.GatherBlockQuantized <bits = 4, block_size = 32, gather_axis = 0, quantize_axis = 1> "
    "(w, i, s) }",
}  # fmt: skip
"""A model of each operator that may compute in half precision."""

_NEWER = {"Attention": 23, "RMSNormalization": 23, "RotaryEmbedding": 23}


def model(operator: str, dtype: ir.DataType) -> onnx.ModelProto:
    """The case of `operator` in `dtype`."""
    text = CASES[operator].replace("T[", f"{TYPES[dtype]}[").replace(" T ", f" {TYPES[dtype]} ")
    head = f'<ir_version: 10, opset_import: ["": {_NEWER.get(operator, 21)}, "com.microsoft": 1]> '
    made = onnx.parser.parse_model(head + text.replace("TO", str(int(dtype))))
    made.graph.node[0].name = "it"
    return made


def landing(proto: onnx.ModelProto) -> str:
    """The provider that took the node called 'it', or what ONNX Runtime says."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=providers)
    except Exception as error:
        return str(error)[:200]
    taken = [p.ep_name for p in session.get_provider_graph_assignment_info() for n in p.get_nodes() if n.name == "it"]
    return taken[0] if taken else "nobody: the runtime wrote it out"


def placed(paths: list[str]) -> dict[str, dict[str, list[str]]]:
    """Operators of each model by the provider that took them, and under "executed" those of the optimized graph."""
    from qcompile.compiler.verification.optimized import optimize

    found: dict[str, dict[str, list[str]]] = {}
    for path in paths:
        graph = optimize(Path(path), "CUDAExecutionProvider")
        types = {n.name: n.op_type for n in onnx.load(path).graph.node}
        of_model = found[Path(path).stem] = {"executed": [n.op_type for n in graph.nodes]}
        for name, provider in graph.providers.items():
            of_model.setdefault(provider, []).append(types.get(name, name))
    return found


if __name__ == "__main__":
    cases = {f"{op}|{TYPES[dtype]}": landing(model(op, dtype)) for op in CASES for dtype in TYPES}
    json.dump({"operators": cases, "models": placed(sys.argv[1:])}, sys.stdout)
