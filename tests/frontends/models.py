"""Small models for the tests of the front ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

WIDTH = 8


def linear(
    batch: int | str = "batch", opset: int = 21, nodes: list[onnx.NodeProto] | None = None, width: int = WIDTH
) -> onnx.ModelProto:
    """y = relu(x W + b), x [batch, width]; `nodes` replaces the graph."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.standard_normal((width, width)).astype(np.float32), "W"),
        numpy_helper.from_array(random.standard_normal(width).astype(np.float32), "b"),
    ]
    if nodes is None:
        nodes = [
            h.make_node("MatMul", ["x", "W"], ["product"], name="matmul"),
            h.make_node("Add", ["product", "b"], ["sum"], name="add"),
            h.make_node("Relu", ["sum"], ["y"], name="relu"),
        ]
    graph = h.make_graph(
        nodes,
        "linear",
        [h.make_tensor_value_info("x", T.FLOAT, [batch, width])],
        [h.make_tensor_value_info("y", T.FLOAT, [batch, width])],
        weights,
    )
    domains = sorted({n.domain for n in nodes if n.domain})
    imports = [h.make_opsetid("", opset), *(h.make_opsetid(d, 1) for d in domains)]
    return h.make_model(graph, opset_imports=imports, ir_version=10)


def two_inputs() -> onnx.ModelProto:
    """sum = tokens' embeddings masked: tokens int64 [batch, length], mask float [batch, length]."""
    table = numpy_helper.from_array(np.ones((16, 4), np.float32), "table")
    one = numpy_helper.from_array(np.array([2], np.int64), "axes")
    graph = h.make_graph(
        [
            h.make_node("Gather", ["table", "tokens"], ["rows"], name="gather"),
            h.make_node("Unsqueeze", ["mask", "axes"], ["column"], name="unsqueeze"),
            h.make_node("Mul", ["rows", "column"], ["y"], name="mul"),
        ],
        "two",
        [
            h.make_tensor_value_info("tokens", T.INT64, ["batch", "length"]),
            h.make_tensor_value_info("mask", T.FLOAT, ["batch", "length"]),
        ],
        [h.make_tensor_value_info("y", T.FLOAT, ["batch", "length", 4])],
        [table, one],
    )
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)


def image_model(channels: int = 3, size: int = 16) -> onnx.ModelProto:
    """y = relu(image), image [1, channels, size, size]."""
    shape = [1, channels, size, size]
    graph = h.make_graph(
        [h.make_node("Relu", ["image"], ["y"], name="relu")],
        "image",
        [h.make_tensor_value_info("image", T.FLOAT, shape)],
        [h.make_tensor_value_info("y", T.FLOAT, shape)],
    )
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write the model as it is, valid or not."""
    path.write_bytes(model.SerializeToString())
    return path


def save_external(path: Path, location: str, data: Path | None = None) -> Path:
    """A linear model whose weight W lies at `location`; its bytes are written to `data`."""
    model = linear()
    weight = model.graph.initializer[0]
    content = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = T.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(content)))):
        weight.external_data.add(key=key, value=value)
    if data is not None:
        data.write_bytes(content)
    return save(model, path)


def samples(count: int, seed: int = 0, width: int = WIDTH) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Inputs of `linear(width=width)`."""
    random = np.random.default_rng(seed)
    return [{"x": random.standard_normal((1, width)).astype(np.float32)} for _ in range(count)]


def npz_folder(folder: Path, count: int) -> Path:
    """The same samples, one .npz each."""
    folder.mkdir()
    for number, sample in enumerate(samples(count)):
        np.savez(folder / f"{number:03}.npz", **sample)
    return folder
