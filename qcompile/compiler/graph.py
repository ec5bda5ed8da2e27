"""Questions about an onnx_ir graph that every pass asks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph and every If, Loop and Scan body below it, outer before inner."""
    yield model.graph
    yield from model.graph.subgraphs()


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of the model, bodies of control flow included."""
    yield from model.graph.all_nodes()


def constant(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """The array behind an initializer or a Constant node's output, else None; who runs a model may override an
    initializer that is an input too."""
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is not None and node.op_type == "Constant" and "value" in node.attributes:
        return node.attributes["value"].as_tensor().numpy()
    return None


def is_constant(value: ir.Value | None) -> bool:
    """`constant(value) is not None`, without reading the array."""
    if value is None or value.is_graph_input():
        return False
    node = value.producer()
    return value.const_value is not None or (node is not None and node.op_type == "Constant")


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions, None when unknown."""
    return None if value is None or value.shape is None else value.shape.rank()


def is_float32(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def opset(model: ir.Model) -> int:
    """Version of the default ONNX domain."""
    return model.graph.opset_imports.get("", 1)


def name_of(value: ir.Value) -> str:
    """The value's name; every value has one after the prepare phase."""
    assert value.name is not None
    return value.name


def add_initializer(
    graph: ir.Graph, name: str, array: npt.NDArray[np.generic], dtype: ir.DataType | None = None
) -> ir.Value:
    """Register `array` as initializer `name` of `graph` and return its value."""
    tensor = ir.tensor(array, dtype=dtype, name=name) if dtype else ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def drop_unread_initializers(model: ir.Model) -> None:
    """Take out the initializers that nothing reads, unless they are inputs or outputs too."""
    for graph in graphs(model):
        inputs = set(graph.inputs)
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and value not in inputs:
                del graph.initializers[name]
