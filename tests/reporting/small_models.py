"""Small models for diff and inspection, written to files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def convolutions(path: Path, *, prefix: str = "", scale: float = 1.0) -> Path:
    """Conv -> Relu -> Conv -> Add (residual) -> GlobalAveragePool -> Flatten -> Gemm, float, opset 17."""
    random = np.random.default_rng(0)
    p = prefix

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((random.normal(size=shape) * 0.2 * scale).astype(np.float32), p + name)

    nodes = [
        helper.make_node("Conv", ["x", p + "w1", p + "b1"], [p + "c1"], p + "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", [p + "c1"], [p + "r1"], p + "relu1"),
        helper.make_node("Conv", [p + "r1", p + "w2", p + "b2"], [p + "c2"], p + "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", [p + "c2", p + "r1"], [p + "s"], p + "add"),
        helper.make_node("GlobalAveragePool", [p + "s"], [p + "g"], p + "pool"),
        helper.make_node("Flatten", [p + "g"], [p + "f"], p + "flatten"),
        helper.make_node("Gemm", [p + "f", p + "w3", p + "b3"], ["y"], p + "fc", transB=1),
    ]
    weights = [
        weight("w1", 8, 3, 3, 3), weight("b1", 8), weight("w2", 8, 8, 3, 3), weight("b2", 8), weight("w3", 5, 8),
        weight("b3", 5),
    ]  # fmt: skip
    return save(path, nodes, weights, [("x", [1, 3, 12, 12])], [("y", [1, 5])])


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    inputs: list[tuple[str, list[int | str]]],
    outputs: list[tuple[str, list[int | str]]],
) -> Path:
    """Write a model of float32 inputs and outputs."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in outputs],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def quantized_by_onnxruntime(source: Path, target: Path, **options: object) -> Path:
    """What onnxruntime.quantization.quantize_static makes of `source`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            random = np.random.default_rng(1)
            self.samples: Iterator[dict[str, object]] = iter(
                [{"x": random.normal(size=(1, 3, 12, 12)).astype(np.float32)} for _ in range(2)]
            )

        def get_next(self) -> dict[str, object] | None:
            return next(self.samples, None)

    quantize_static(source, target, Reader(), per_channel=True, activation_type=QuantType.QUInt8, **options)
    return target
