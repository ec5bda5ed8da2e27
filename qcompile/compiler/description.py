"""A model as protobuf without its weights: what ONNX's own inference and conversion need to see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from qcompile.compiler.graph import name_of

if TYPE_CHECKING:
    import onnx

_LARGE = 1024
"""Initializers above this size in bytes are left out; no shape and no opset adapter reads them."""


def describe(model: ir.Model) -> tuple[onnx.ModelProto, list[ir.Value]]:
    """The model with its large initializers as inputs of the main graph, and these initializers.

    Serializing a model with its weights costs more than the inference itself, and is impossible
    above 2 GiB. `model` is unchanged.
    """
    graph = model.graph
    inputs = list(graph.inputs)
    large = [v for v in graph.initializers.values() if v.const_value is not None and v.const_value.nbytes > _LARGE]
    for value in large:
        del graph.initializers[name_of(value)]
    graph.inputs.extend(v for v in large if v not in inputs)
    try:
        return ir.to_proto(model), large
    finally:
        while len(graph.inputs) > len(inputs):
            graph.inputs.pop()  # a deleted slice would leave its values marked as inputs
        for value in large:
            graph.register_initializer(value)
