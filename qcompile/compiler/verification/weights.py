"""What quantization did to the weights: bytes by kind, and the distributions of the worst ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import graphs, is_constant, rank
from qcompile.compiler.params import dequantize
from qcompile.compiler.plan import QuantizedWeight, QuantPlan
from qcompile.compiler.report import Histogram, LayerNoise, TensorBytes
from qcompile.compiler.verification.noise import Noise
from qcompile.compiler.weight_params import pieces

_BINS = 64
_WORST = 4
_HOLDERS = {
    "Conv": "Conv weights", "ConvTranspose": "ConvTranspose weights", "Gather": "tables",
    "Gemm": "Gemm weights", "QGemm": "Gemm weights",
    "MatMul": "MatMul weights", "MatMulIntegerToFloat": "MatMul weights", "MatMulNBits": "MatMul weights",
    "DynamicQuantizeMatMul": "MatMul weights", "LSTM": "LSTM weights", "DynamicQuantizeLSTM": "LSTM weights",
    "GRU": "GRU weights",
}  # fmt: skip
_THROUGH = ("DequantizeLinear", "Transpose", "Reshape", "Identity", "Cast", "Unsqueeze")


def group_bytes(float_model: ir.Model, artifact: ir.Model) -> list[TensorBytes]:
    """Bytes of the constants of both models, grouped by the operator that reads them; largest first."""
    before, after = _bytes_by_group(float_model), _bytes_by_group(artifact)
    groups = [TensorBytes(name=n, before=before.get(n, 0), after=after.get(n, 0)) for n in {**before, **after}]
    return sorted(groups, key=lambda g: (-g.before, -g.after, g.name))


def worst_histograms(float_model: ir.Model, plan: QuantPlan, layers: Sequence[LayerNoise]) -> list[Histogram]:
    """Weights of the four layers that are noisiest alone, where `float_model` has them by name."""
    initializers = (v for g in graphs(float_model) for v in g.initializers.values())
    originals = {v.name: v.const_value for v in initializers if v.const_value is not None}
    alone: Mapping[str, float] = {n.node: n.isolated_sqnr for n in layers if n.isolated_sqnr is not None}
    found: list[Histogram] = []
    for (name, unit), quantized in sorted(plan.weights.items(), key=lambda item: alone.get(item[0][1], np.inf)):
        tensor = originals.get(name)
        if tensor is None or tuple(tensor.shape.numpy()) != quantized.codes.shape:
            continue
        exact = tensor.numpy()
        histogram = _histogram(f"{name} of {unit}", exact, quantized)
        if histogram.sqnr > 0:  # otherwise a rewrite gave the weight other values under the same name
            found.append(histogram)
        if len(found) == _WORST:
            break
    return found


def _histogram(name: str, exact: np.ndarray[Any, Any], quantized: QuantizedWeight) -> Histogram:
    low, high = float(exact.min()), float(exact.max())
    edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
    noise, counts = Noise(), np.zeros((2, _BINS), np.int64)
    for at, _, params in pieces(exact.shape, quantized.params):
        both = exact[at], dequantize(quantized.codes[at], params)
        noise.add(*both)
        counts += [np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] for values in both]
    return Histogram(
        name=name,
        sqnr=noise.sqnr,
        edges=edges.tolist(),
        float_counts=counts[0].tolist(),
        quantized_counts=counts[1].tolist(),
    )


def _bytes_by_group(model: ir.Model) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for graph in graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                total[_group(value)] += value.const_value.nbytes
        for node in graph:
            tensor = node.attributes.get("value") if node.op_type == "Constant" else None
            if tensor is not None and tensor.type == ir.AttributeType.TENSOR:
                total[_group(node.outputs[0])] += tensor.as_tensor().nbytes
    return dict(total)


def _is_cast(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == "Cast"


def _group(value: ir.Value) -> str:
    """What a constant is for: the operator that reads it, also behind its DequantizeLinear or a reshaping."""
    for use in value.uses():
        node = use.node
        for _ in range(4):
            restored = node.op_type == "Mul" and all(is_constant(v) or _is_cast(v) for v in node.inputs)
            if not (restored or node.op_type in _THROUGH) or not node.outputs[0].uses():
                break
            node = next(iter(node.outputs[0].uses())).node
        if node.op_type in _HOLDERS and (node.op_type != "Gather" or (rank(value) or 0) > 1):
            return _HOLDERS[node.op_type]
    return "other constants"
