"""Reports with the proportions of real ones, made up from a seed."""

from __future__ import annotations

import json

import numpy as np

from qcompile.compiler.plan import Form
from qcompile.compiler.report import (
    FloatGain,
    FloatGains,
    FloatRecord,
    Histogram,
    LayerNoise,
    OutputNoise,
    PassRecord,
    PlacedNode,
    Proof,
    Report,
    Speed,
    TensorBytes,
    UnitRecord,
)

PASSES = [
    ("load", "prepare", 0.031, False),
    ("upgrade-opset", "prepare", 0.22, True),
    ("inline-functions", "prepare", 0.004, False),
    ("infer-shapes", "prepare", 0.41, True),
    ("fold-constants", "prepare", 0.38, True),
    ("fold-batch-norm", "prepare", 0.09, False),
    ("unique-names", "prepare", 0.006, True),
    ("calibrate", "analyze", 2.9, False),
    ("place-int8", "quantize", 0.12, False),
    ("round-to-nearest", "quantize", 0.36, False),
    ("lower-qdq", "lower", 0.17, True),
]
ATTENTION = [
    ("attention/self/query/MatMul", "MatMul", Form.INPUTS, ""),
    ("attention/self/key/MatMul", "MatMul", Form.INPUTS, ""),
    ("attention/self/value/MatMul", "MatMul", Form.INPUTS, ""),
    ("attention/self/MatMul", "MatMul", Form.FLOAT, "a product of two activations costs more to convert than it saves"),
    (
        "attention/self/Add",
        "Add",
        Form.FLOAT,
        "an input carries an attention mask (-3.4e38): no 8-bit grid resolves it",
    ),
    ("attention/self/Softmax", "Softmax", Form.FLOAT, "cpu has no low-precision form of Softmax"),
    (
        "attention/self/MatMul_1",
        "MatMul",
        Form.FLOAT,
        "a product of two activations costs more to convert than it saves",
    ),
    ("attention/self/Transpose_3", "Transpose", Form.PASS, ""),
    ("attention/output/dense/MatMul", "MatMul", Form.INPUTS, ""),
    (
        "attention/output/LayerNorm",
        "LayerNormalization",
        Form.FLOAT,
        "cpu has no low-precision form of LayerNormalization",
    ),
    ("intermediate/dense/MatMul", "MatMul", Form.INPUTS, ""),
    ("intermediate/act_fn/Gelu", "Gelu", Form.FLOAT, "cpu has no low-precision form of Gelu"),
    ("output/dense/MatMul", "MatMul", Form.FULL, ""),
    ("output/LayerNorm", "LayerNormalization", Form.FLOAT, "cpu has no low-precision form of LayerNormalization"),
]


def encoder_report(layers: int = 6, *, refuted: bool = False, slower: bool = False) -> Report:
    """A report as MiniLM would give one."""
    random = np.random.default_rng(7)
    placement = [
        PlacedNode(node="/embeddings/Gather", op_type="Gather", form=Form.FLOAT, reason="indices, not values"),
        PlacedNode(node="/embeddings/LayerNorm", op_type="LayerNormalization", form=Form.FLOAT, reason=ATTENTION[9][3]),
    ]
    for i in range(layers):
        for name, op_type, form, reason in ATTENTION:
            placement.append(
                PlacedNode(
                    node=f"/encoder/layer.{i}/{name}",
                    op_type=op_type,
                    form=form,
                    reason=reason,
                    quantizes=int(form is not Form.FLOAT and "key" not in name and "value" not in name),
                    dequantizes=int(name.endswith("output/LayerNorm") and "attention" not in name),
                )
            )
    placement.append(PlacedNode(node="/pooler/dense/Gemm", op_type="Gemm", form=Form.FULL, quantizes=1))
    placed = [p for p in placement if p.form != Form.FLOAT]
    units = [
        UnitRecord(node=p.node, op_type=p.op_type, form=p.form, kernel="MatMulIntegerToFloat", proved=True)
        for p in placed
    ]
    if refuted:
        units[-1] = units[-1].model_copy(
            update={"proved": False, "kernel": None, "reason": "the runtime turned it into a float Gemm"}
        )
    noise = []
    for i, p in enumerate(placed):
        isolated = float(46 - 9 * random.random() - (10 if "output/dense" in p.node and "layer.3" in p.node else 0))
        noise.append(
            LayerNoise(
                node=p.node,
                op_type=p.op_type,
                value=p.node + "_output_0",
                sqnr=min(isolated, 40 - 0.32 * i + 2 * float(random.normal())),
                cosine=1 - 10 ** (-isolated / 10) / 2,
                isolated_sqnr=isolated,
                isolated_cosine=1 - 10 ** (-isolated / 10) / 2,
            )
        )
    return Report(
        model="models/all-MiniLM-L6-v2.onnx",
        artifact="models/all-MiniLM-L6-v2.int8-static.onnx",
        page="models/all-MiniLM-L6-v2.int8-static.html",
        recipe="int8-static",
        target="cpu",
        versions={"qcompile": "0.1.0", "onnx": "1.23.2", "onnxruntime-gpu": "1.31.1", "numpy": "2.5.1"},
        data="folder of .npz files (sentences)",
        samples=128,
        bytes_before=90_312_407,
        bytes_after=23_561_224,
        notices=["2 inputs have dynamic dimensions; the held-out samples use sequence lengths 9 to 41."],
        passes=[
            PassRecord(name=n, phase=p, seconds=s, modified=m, nodes_before=301, nodes_after=301 - 40 * m)
            for n, p, s, m in PASSES
        ],
        units=units,
        kept_float=[
            FloatRecord(node=p.node, op_type=p.op_type, reason=p.reason) for p in placement if p.form == Form.FLOAT
        ],
        placement=placement,
        proofs=[
            Proof(name="validity", passed=True, detail="the ONNX checker accepts the artifact"),
            Proof(name="target legality", passed=True, detail="every Q/DQ pattern is in the table of cpu"),
            Proof(
                name="dispatch",
                passed=not refuted,
                detail="1 of 44 units runs in float" if refuted else f"{len(units)} units run in low precision",
            ),
            Proof(name="numerics", passed=True, detail="8 held-out samples, worst output 25.3 dB"),
            Proof(name="dispatch on tensorrt", passed=None, detail="no TensorRT provider on this machine"),
        ],
        outputs=[
            OutputNoise(name="last_hidden_state", sqnr=25.3, cosine=0.9985, max_error=0.31),
            OutputNoise(name="sentence_embedding", sqnr=27.9, cosine=0.99923, max_error=0.012),
        ],
        layers=noise,
        float_gains=_gains(random, placed),
        weights=[_histogram(random, p.node + ".weight") for p in placed[:9]],
        tensors=[
            TensorBytes(name="embeddings", before=47_000_000, after=11_900_000),
            TensorBytes(name="MatMul weights", before=42_467_328, after=10_616_832),
            TensorBytes(name="biases and norms", before=220_000, after=220_000),
            TensorBytes(name="scales and zero points", before=0, after=184_000),
        ],
        speed=Speed(
            provider="CPUExecutionProvider",
            float_ms=8.1 if slower else 16.5,
            compiled_ms=16.5 if slower else 8.1,
            spread=0.06,
            slowest=[
                ("/encoder/layer.0/attention/self/Softmax", 1.9),
                ("/encoder/layer.0/intermediate/act_fn/Gelu", 1.2),
            ],
        ),
        metric_float=0.8203,
        metric_compiled=0.8192,
    )


def _gains(random: np.random.Generator, placed: list[PlacedNode]) -> FloatGains:
    gains = [
        FloatGain(node=p.node, op_type=p.op_type, form=p.form, gain=float(random.standard_t(2)) * 0.2, float_ms=0.1)
        for p in placed[:20]
    ]
    gains.sort(key=lambda g: -g.gain)
    proposed = [g.node for g in gains[:2]]
    setting = f"--set 'place-int8.keep-float={json.dumps(proposed)}'"
    return FloatGains(
        sqnr=25.3, units=len(placed), samples=4, gains=gains, proposed=proposed, together=1.4, setting=setting
    )


def _histogram(random: np.random.Generator, name: str) -> Histogram:
    weight = random.standard_t(5, 20_000) * 0.04 * (1 + random.random())
    scale = np.abs(weight).max() / 127 * 2
    codes = np.round(weight / scale) * scale
    edges = np.linspace(weight.min(), weight.max(), 65)
    noise = float(10 * np.log10((weight**2).mean() / ((weight - codes) ** 2).mean()))
    return Histogram(
        name=name,
        sqnr=noise,
        edges=edges.tolist(),
        float_counts=np.histogram(weight, edges)[0].tolist(),
        quantized_counts=np.histogram(codes, edges)[0].tolist(),
    )
