"""A compiled model whose units can be switched back to float, one by one, by inputs of the model.

    value = If(switch) { the unit's float operators } else { what the compiled unit computes }

The float operators are cut out of the float model and read what the compiled model has at that place, so a
switch answers what leaving this unit in float would change, without a session for each unit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from qcompile.compiler.plan import Form, Unit
from qcompile.compiler.verification.isolation import Index, Piece, cut_out
from qcompile.compiler.verification.reference import Reference
from qcompile.runtime.taps import branches

Array = np.ndarray[Any, Any]


class Switcher:
    """A copy of the artifact that gets switches.

    Args:
        reference: the float model.
        compiled: the artifact; it is not changed.
        units: all units of the artifact, also those that get no switch.

    Attributes:
        model: the copy.
        switches: name of the boolean input by unit node.
        weights: large weights of the float operators, which the model wants to be fed.
    """

    def __init__(self, reference: Reference, compiled: onnx.ModelProto, units: Mapping[str, Unit]) -> None:
        self.reference, self.units = reference, units
        self._lowered = {name: unit for unit in units.values() for name in (unit.lowered, unit.node)}
        self.exact = Index(reference.model, reference.weights)
        self.model = onnx.ModelProto()
        self.model.CopyFrom(compiled)
        self.switches: dict[str, str] = {}
        self.weights: dict[str, Array] = {}
        index = Index(self.model)
        self._graph, self._producers, self._homes = self.model.graph, index.producers, index.homes
        self._halves = index.halves
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in (node for graph in branches(self.model) for node in graph.node):
            for name in node.input:
                self._readers[name].append(node)
        self._readable = {name: name for name in (*self._producers, *(i.name for i in self._graph.input))}
        for unit in units.values():
            decoded = self._behind(self._codes(unit), "DequantizeLinear")
            if decoded is not None:
                self._readable[unit.output] = decoded.output[0]

    def piece(self, unit: Unit) -> Piece | None:
        """The float operators of `unit`, or None where they cannot be told from those around them."""
        piece = cut_out(unit, unit.output, self.exact, self._readable)
        mixed = piece is not None and any(n.name in self.units and n.name != unit.node for n in piece.nodes)
        return None if mixed else piece

    def add(self, unit: Unit, piece: Piece) -> bool:
        """Give `unit` a switch; False where the artifact has no place for one."""
        quantizer = self._producers.get(self._codes(unit)) if _writes_codes(unit) else None
        value = quantizer.input[0] if quantizer is not None else unit.output
        if value not in self._producers or (_writes_codes(unit) and quantizer is None):
            return False
        switch = self.switches[unit.node] = f"float@{unit.node}"
        self._graph.input.append(onnx.helper.make_tensor_value_info(switch, onnx.TensorProto.BOOL, []))
        self._choose(value, switch, self._float_branch(piece, f"{len(self.switches)}:", value))
        if quantizer is not None:
            self._unrounded(unit, switch, value)
        return True

    def _codes(self, unit: Unit) -> str:
        """Name of the codes that `unit` writes."""
        behind = self._behind(unit.output, "QuantizeLinear") if _writes_codes(unit) else None
        return behind.output[0] if behind is not None else f"{unit.output}_quantized"

    def _behind(self, value: str, op_type: str) -> onnx.NodeProto | None:
        return next((n for n in self._readers[value] if n.op_type == op_type), None)

    def _float_branch(self, piece: Piece, prefix: str, value: str) -> onnx.GraphProto:
        """The nodes of `piece`, in float32, as a branch whose result has the type of `value`."""
        for name in sorted(piece.initializers):
            self._constant(name, prefix)
        branch, result = onnx.GraphProto(name=f"{prefix}float"), prefix + piece.result
        read = {name: self._readable[name] for name in sorted(piece.reads)}
        for name, source in read.items():
            if source in self._halves:
                read[name] = prefix + name
                branch.node.append(onnx.helper.make_node("Cast", [source], [read[name]], to=onnx.TensorProto.FLOAT))
        for node in piece.nodes:
            copy = branch.node.add()
            copy.CopyFrom(node)
            copy.name = prefix + node.name if node.name else ""
            copy.input[:] = [read[n] if n in read else prefix + n if n else "" for n in node.input]
            copy.output[:] = [prefix + n if n else "" for n in node.output]
        if value in self._halves:
            branch.node.append(onnx.helper.make_node("Cast", [result], [f"{result}@half"], to=self._halves[value]))
            result = f"{result}@half"
        branch.output.append(onnx.ValueInfoProto(name=result))
        return branch

    def _constant(self, name: str, prefix: str) -> None:
        """The float model's constant `name`, under its own name with the prefix."""
        array = self.reference.weights.get(name)
        if array is not None:
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            self._graph.input.append(onnx.helper.make_tensor_value_info(prefix + name, kind, array.shape))
            self.weights[prefix + name] = array
        else:
            copy = self._graph.initializer.add()
            copy.CopyFrom(self.exact.initializers[name])
            copy.name = prefix + name

    def _choose(self, value: str, switch: str, switched: onnx.GraphProto) -> str:
        """`value` becomes what an If gives; returns the name that its own maker writes from now on."""
        own, maker = f"{value}@own", self._producers[value]
        maker.output[:] = [own if name == value else name for name in maker.output]
        choice = onnx.helper.make_node(
            "If", [switch], [value], name=f"{value}@choice", then_branch=switched, else_branch=_hand_on(own)
        )
        home = self._homes[value]
        home.node.insert(next(i for i, node in enumerate(home.node, 1) if own in node.output), choice)
        self._producers |= {own: maker, value: choice}
        self._homes[own] = home
        return own

    def _unrounded(self, unit: Unit, switch: str, value: str) -> None:
        """Float readers of a unit that is switched to float read its result as it is, not rounded to codes."""
        decoded = self._behind(self._codes(unit), "DequantizeLinear")
        if decoded is None:
            return
        name = decoded.output[0]
        own = self._choose(name, switch, _hand_on(value))
        for reader in self._readers[name]:
            reading = self._lowered.get(reader.name)
            if reading is not None and unit.output in reading.inputs:
                reader.input[:] = [own if n == name else n for n in reader.input]


def _writes_codes(unit: Unit) -> bool:
    return unit.form in (Form.FULL, Form.PASS)


def _hand_on(value: str) -> onnx.GraphProto:
    """A branch that gives `value`."""
    result = f"{value}@on"
    return onnx.GraphProto(
        name=f"{value}@branch",
        node=[onnx.helper.make_node("Identity", [value], [result])],
        output=[onnx.ValueInfoProto(name=result)],
    )
