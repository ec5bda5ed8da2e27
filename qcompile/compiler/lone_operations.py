"""One operation as a model of its own, to be timed: as float, or lowered as the artifact will have it.

Conversions at its borders are cut off, so that an operation on codes reads and writes codes: what conversions cost
depends on its neighbours, and is counted by the placement. A model holds several copies with inputs and weights of
their own: a run is long enough to be timed, and weights are not in the cache from the run before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir

from qcompile.compiler.blocks import extract
from qcompile.compiler.graph import add_initializer, drop_unread_initializers, is_constant, name_of
from qcompile.compiler.params import QuantParams
from qcompile.compiler.serialization import initializer_bytes
from qcompile.compiler.units import Candidate
from qcompile.errors import ModelError

_BYTES = 64 << 20
_LARGEST = 1 << 30
_MOST = 8
"""Copies of an operation: as many as have weights of `_BYTES` together."""


def alone(model: ir.Model, candidate: Candidate, shapes: Mapping[str, tuple[int, ...]]) -> ir.Model:
    """The nodes of `candidate` as a model, with inputs of these shapes."""
    made = {v for node in candidate.nodes for v in node.outputs}
    reads = dict.fromkeys(
        name_of(v)
        for node in candidate.nodes
        for v in node.inputs
        if v is not None and v not in made and not is_constant(v)
    )
    piece = extract(model, list(reads), [name_of(candidate.output)])
    for value in (*piece.graph.inputs, *piece.graph.outputs):
        value.shape = ir.Shape(shapes[name_of(value)])
    return piece


def without_borders(piece: ir.Model) -> None:
    """Cut off conversions of inputs and of outputs; `piece` reads and writes what is inside."""
    graph = piece.graph
    for i, value in enumerate(graph.inputs):
        readers = [use.node for use in value.uses()]
        if len(readers) == 1 and readers[0].op_type in ("QuantizeLinear", "Cast"):
            codes = readers[0].outputs[0]
            graph.inputs[i] = ir.Value(name=codes.name, type=codes.type, shape=value.shape)
            codes.replace_all_uses_with(graph.inputs[i], replace_graph_outputs=True)
            graph.remove(readers[0], safe=True)
    for i, result in enumerate(graph.outputs):
        last = result.producer()
        inside = last.inputs[0] if last is not None and last.op_type in ("DequantizeLinear", "Cast") else None
        if last is not None and inside is not None and not result.uses() and not inside.is_graph_input():
            graph.outputs[i], inside.shape = inside, result.shape
            graph.remove(last, safe=True)
    drop_unread_initializers(piece)


def copies(piece: ir.Model) -> tuple[bytes, int]:
    """A model of several copies of `piece`, and how many.

    Raises:
        ModelError: not even one fits into a model in memory.
    """
    weights = initializer_bytes(piece)
    if weights > _LARGEST:
        raise ModelError(f"a weight of {weights >> 20} MiB does not fit into a model in memory")
    count = max(1, min(_MOST, _BYTES // max(weights, 1)))
    one = ir.to_proto(piece)
    many = onnx.ModelProto()
    many.CopyFrom(one)
    many.graph.Clear()
    many.graph.name = "copies"
    for i in range(count):
        _add(one.graph, many.graph, f"{i}:")
    return many.SerializeToString(), count


def _add(one: onnx.GraphProto, many: onnx.GraphProto, prefix: str) -> None:
    for field in ("input", "output", "initializer"):
        for item in getattr(one, field):
            copy = getattr(many, field).add()
            copy.CopyFrom(item)
            copy.name = prefix + item.name
    for node in one.node:
        copy = many.node.add()
        copy.CopyFrom(node)
        copy.name = prefix + node.name
        copy.input[:] = [prefix + name if name else "" for name in node.input]
        copy.output[:] = [prefix + name if name else "" for name in node.output]


def conversion(op_type: str, params: QuantParams, shape: Sequence[int], dtype: ir.DataType, opset: int) -> ir.Model:
    """QuantizeLinear or DequantizeLinear of a tensor of this shape, between `dtype` and the codes of `params`."""
    codes = params.spec.format.dtype
    given, made = (dtype, codes) if op_type == "QuantizeLinear" else (codes, dtype)
    value = ir.Value(name="x", type=ir.TensorType(given), shape=ir.Shape(shape))
    graph = ir.Graph([value], [], nodes=[], opset_imports={"": opset}, name="conversion")
    scale = add_initializer(graph, "scale", params.scale.astype(dtype.numpy()), dtype)
    zero = add_initializer(graph, "zero", params.zero_point.astype(codes.numpy()), codes)
    node = ir.node(op_type, [value, scale, zero], name=op_type)
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", ir.TensorType(made), ir.Shape(shape)
    graph.append(node)
    graph.outputs.append(node.outputs[0])
    return ir.Model(graph, ir_version=10)
