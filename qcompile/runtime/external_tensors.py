"""The tensors of a model file, and the files that hold those it stores outside itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    import onnx


def external_files(proto: onnx.ModelProto, path: Path) -> set[Path]:
    """The files that hold the model's external data."""
    return {
        (path.parent / entry.value).resolve()
        for tensor in tensors(proto)
        if tensor.data_location == tensor.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of the tensor's values, wherever they are; 0 for texts."""
    dtype = ir.DataType(tensor.data_type)
    return math.ceil(math.prod(tensor.dims) * dtype.bitwidth / 8) if dtype != ir.DataType.STRING else 0


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the model: initializers and attributes, in bodies and functions too."""
    yield from _in_graph(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _in_node(node)


def _in_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _in_node(node)


def _in_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("g"):
            yield from _in_graph(attribute.g)
        for graph in attribute.graphs:
            yield from _in_graph(graph)
