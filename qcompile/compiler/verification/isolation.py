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
from qcompile.runtime.taps import branches, tappable_values

Array = np.ndarray[Any, Any]

_HALF = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}


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


class Index:
    """Where the values of a model come from, branches of Ifs included.

    Attributes:
        producers: node by the name of what it makes.
        homes: the graph that a value is made in.
        initializers: tensor by name.
        constants: names of the initializers, and of those that were taken out of the model.
        halves: values in half precision, each with its ONNX element type.
    """

    def __init__(self, model: onnx.ModelProto, taken: Collection[str] = ()) -> None:
        self.producers: dict[str, onnx.NodeProto] = {}
        self.homes: dict[str, onnx.GraphProto] = {}
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.made_by: dict[str, list[str]] = {}
        self.halves: dict[str, int] = {}
        self._order: dict[str, int] = {}
        known = tappable_values(model) - set(taken)
        for graph in branches(model):
            self.initializers |= {i.name: i for i in graph.initializer}
            for value in (*graph.value_info, *graph.output):
                if value.type.tensor_type.elem_type in _HALF:
                    self.halves[value.name] = value.type.tensor_type.elem_type
            for node in graph.node:
                names = [name for name in node.output if name in known]
                self.producers |= dict.fromkeys(names, node)
                self.homes |= dict.fromkeys(names, graph)
                self.made_by.setdefault(node.name, []).extend(names)
                self._order |= {name: len(self._order) + i for i, name in enumerate(names)}

        self.constants = self.initializers.keys() | set(taken)

    def as_read(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """The float model's `values` in the types that this model has them in."""
        kinds = {name: onnx.helper.tensor_dtype_to_np_dtype(kind) for name, kind in self.halves.items()}
        return {name: array.astype(kinds[name]) if name in kinds else array for name, array in values.items()}

    def in_order(self, names: Collection[str]) -> list[onnx.NodeProto]:
        """The nodes that make these values, in the order of the graph."""
        nodes = [self.producers[name] for name in sorted(names, key=self._order.__getitem__)]
        return list({id(node): node for node in nodes}.values())


def cut_out(unit: Unit, result: str, model: Index, cuttable: Collection[str]) -> Piece | None:
    """The piece of `unit` that makes `result`, or None where it cannot be told apart.

    Args:
        model: the model that the piece is of.
        cuttable: names of values at which it may end.
    """
    own = (unit.node, unit.bias, unit.activation)
    inner = {name for node in own if node for name in model.made_by.get(node, ())} | {unit.output}
    piece = Piece(unit, result)
    waiting, seen, needed = [result], set[str](), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or not name:
            continue
        seen.add(name)
        if name in model.constants:
            piece.initializers.add(name)
        elif name in unit.inputs or (name in cuttable and name not in inner):
            piece.reads.add(name)
        elif name in model.producers:
            needed.add(name)
            waiting += model.producers[name].input
        else:
            return None
    piece.nodes = model.in_order(needed)
    if any(attribute.HasField("g") for node in piece.nodes for attribute in node.attribute):
        return None
    return piece if piece.reads <= set(cuttable) and piece.nodes else None


def assemble(
    pieces: Sequence[Piece], index: Index, artifact: onnx.ModelProto, values: Mapping[str, Array]
) -> onnx.ModelProto:
    """One model of all pieces; the result of piece i is called `result_name(i)`.

    Args:
        index: of `artifact`.
        values: one sample of what the pieces read, for element types and ranks.
    """
    reads = sorted({name for piece in pieces for name in piece.reads})
    wanted = sorted({name for piece in pieces for name in piece.initializers})
    graph = onnx.GraphProto(name="pieces")
    for name in reads:
        array = values[name]
        dims = [f"{name}:{i}" for i in range(array.ndim)]
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, dims))
    graph.initializer.extend(index.initializers[name] for name in wanted)
    for i, piece in enumerate(pieces):
        fixed = piece.reads | piece.initializers | {""}
        for node in piece.nodes:
            copy = graph.node.add()
            copy.CopyFrom(node)
            copy.name = f"{i}:{node.name}" if node.name else ""
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
