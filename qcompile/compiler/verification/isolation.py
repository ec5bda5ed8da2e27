"""One unit alone in low precision: its piece of the artifact, fed with the float model's values.

The pieces of many units make one model: each is cut out of the artifact from its result back to values
that the float model has as well, and its inner names get a prefix so that the pieces do not meet.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from qcompile.compiler.plan import Unit

Array = np.ndarray[Any, Any]


@dataclass
class Piece:
    """The nodes of one unit in the artifact.

    Attributes:
        reads: values of the float model that the piece starts from.
        result: its last value, under its name in the artifact.
    """

    unit: Unit
    result: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    reads: set[str] = field(default_factory=set)
    initializers: set[str] = field(default_factory=set)


def cut_out(unit: Unit, result: str, artifact: onnx.ModelProto, cuttable: Collection[str]) -> Piece | None:
    """The piece of `unit` that makes `result`, or None where it cannot be told apart.

    Args:
        cuttable: names of the float model's values.
    """
    producers = {name: node for node in artifact.graph.node for name in node.output}
    initializers = {i.name for i in artifact.graph.initializer}
    own = {unit.node, unit.bias, unit.activation}
    inner = {name for node in artifact.graph.node if node.name in own for name in node.output} | {unit.output}
    piece = Piece(unit, result)
    waiting, seen, needed = [result], set[str](), set[int]()
    while waiting:
        name = waiting.pop()
        if name in seen or not name:
            continue
        seen.add(name)
        if name in initializers:
            piece.initializers.add(name)
        elif name in unit.inputs or (name in cuttable and name not in inner):
            piece.reads.add(name)
        elif name in producers:
            needed.add(id(producers[name]))
            waiting += producers[name].input
        else:
            return None
    piece.nodes = [node for node in artifact.graph.node if id(node) in needed]
    return piece if piece.reads <= set(cuttable) and piece.nodes else None


def assemble(pieces: Sequence[Piece], artifact: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """One model of all pieces; the result of piece i is called `result_name(i)`.

    Args:
        values: one sample of what the pieces read, for element types and ranks.
    """
    reads = sorted({name for piece in pieces for name in piece.reads})
    wanted = {name for piece in pieces for name in piece.initializers}
    graph = onnx.GraphProto(name="pieces")
    for name in reads:
        array = values[name]
        dims = [f"{name}:{i}" for i in range(array.ndim)]
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, dims))
    graph.initializer.extend(i for i in artifact.graph.initializer if i.name in wanted)
    for i, piece in enumerate(pieces):
        fixed = piece.reads | piece.initializers | {""}
        for node in piece.nodes:
            copy = graph.node.add()
            copy.CopyFrom(node)
            copy.name = f"{i}:{node.name}"
            copy.input[:] = [n if n in fixed else f"{i}:{n}" for n in node.input]
            copy.output[:] = [f"{i}:{n}" if n else "" for n in node.output]
        graph.output.append(onnx.ValueInfoProto(name=f"{i}:{piece.result}"))
    model = onnx.ModelProto(ir_version=artifact.ir_version, graph=graph)
    model.opset_import.extend(artifact.opset_import)
    model.functions.extend(artifact.functions)
    return model


def result_name(position: int, piece: Piece) -> str:
    """Name of a piece's result in the model of `assemble`."""
    return f"{position}:{piece.result}"
