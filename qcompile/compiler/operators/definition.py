"""What an operator of the domain `qcompile` is: its operands, its attributes, and a body in standard operators.

The body is the operator's specification. It travels in the artifact as a model-local function: a runtime that has
a kernel for the operator runs the kernel, any other inlines the body and computes the same. Element types are
fixed by the operator's name, because a custom operator has no other way to tell the type of its result.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from qcompile.errors import ModelError

DOMAIN = "qcompile"
VERSION = 1

FLOAT_TYPES = {ir.DataType.FLOAT: "", ir.DataType.FLOAT16: "Fp16", ir.DataType.BFLOAT16: "Bf16"}
"""The float types T of operands, each with its suffix in operator names."""

Dims = tuple[str, ...]


@dataclass(frozen=True)
class Operand:
    """An input or output.

    Attributes:
        shape: dimensions in the letters of the operator: "..." stands for any leading dimensions, "1" for itself.
        meaning: what it holds.
        or_one: a tensor of shape [1] serves as well, one value for all rows.
        optional: an output that a node may leave out; those come before the others.
    """

    name: str
    dtype: ir.DataType
    shape: Dims
    meaning: str
    or_one: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Attribute:
    """An attribute that every node of the operator must give."""

    name: str
    type: ir.AttributeType
    meaning: str


class Body:
    """Writes the nodes of a function body one after the other."""

    def __init__(self, inputs: Sequence[Operand], outputs: Sequence[Operand], opset: int) -> None:
        self.inputs = {operand.name: ir.val(operand.name, dtype=operand.dtype) for operand in inputs}
        self.opset = opset
        self.nodes: list[ir.Node] = []
        self._constants: dict[tuple[str, bytes], ir.Value] = {}
        self._names = {operand.name for operand in (*inputs, *outputs)}

    def __getitem__(self, name: str) -> ir.Value:
        """The input called `name`."""
        return self.inputs[name]

    def __contains__(self, name: str) -> bool:
        return name in self.inputs

    def add(self, name: str, op_type: str, *inputs: ir.Value, **attributes: ir.Attr | int | Sequence[int]) -> ir.Value:
        """Append a node; its result is called `name`, or `name_2`, `name_3`, ... when there is one already."""
        unique, n = name, 1
        while unique in self._names:
            n += 1
            unique = f"{name}_{n}"
        self._names.add(unique)
        node = ir.node(op_type, inputs, attributes, outputs=[ir.val(unique)], name=unique)
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, name: str, value: float | Sequence[int], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        """A constant: a scalar, or a vector when `value` is a sequence; asked for again, it is the same."""
        array = np.array(value, dtype.numpy())
        key = name, array.tobytes()
        if key not in self._constants:
            self._constants[key] = self.add(name, "Constant", value=ir.AttrTensor("value", ir.tensor(array)))
        return self._constants[key]

    def cast(self, name: str, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.add(name, "Cast", value, to=dtype.value)

    def to_float(self, name: str, dtype: ir.DataType) -> ir.Value:
        """The input `name`, of type `dtype`, in float32."""
        return self[name] if dtype is ir.DataType.FLOAT else self.cast(f"{name}_float", self[name], ir.DataType.FLOAT)

    def of_type(self, name: str, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """A float32 `value` rounded to `dtype`."""
        return value if dtype is ir.DataType.FLOAT else self.cast(name, value, dtype)

    def reduce_last(self, name: str, op_type: str, value: ir.Value) -> ir.Value:
        """A reduction of the last axis, which stays with length 1."""
        if self.opset >= 18:
            return self.add(name, op_type, value, self.constant("last_axis", [-1], ir.DataType.INT64), keepdims=1)
        return self.add(name, op_type, value, axes=[-1], keepdims=1)


Write = Callable[[Body], Sequence[ir.Value]]
"""Writes a body and gives its results in the order of the operator's outputs."""


@dataclass(frozen=True)
class Operator:
    """One operator with fixed element types.

    Attributes:
        meaning: its formula, for readers; the body says it exactly.
        lowest_opset: the oldest opset of the default domain in which its body can be written.
    """

    name: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    meaning: str
    write: Write = field(repr=False, compare=False)
    attributes: tuple[Attribute, ...] = ()
    lowest_opset: int = 13

    def function(self, opset: int) -> ir.Function:
        """The body as a model-local function of a model with this `opset` of the default domain.

        Raises:
            ModelError: `opset` is older than the body can be written in.
        """
        if opset < self.lowest_opset:
            raise ModelError(
                f"operator {self.name} needs opset {self.lowest_opset}, the model has {opset}",
                hint=f"--set upgrade-opset.minimum={self.lowest_opset}",
            )
        body = Body(self.inputs, self.outputs, opset)
        results = list(self.write(body))
        for value, operand in zip(results, self.outputs, strict=True):
            value.name, value.type = operand.name, ir.TensorType(operand.dtype)
            writer = value.producer()
            assert writer is not None, f"{self.name}: {operand.name} is an input"
            writer.name = operand.name
        graph = ir.Graph(
            list(body.inputs.values()), results, nodes=body.nodes, opset_imports={"": opset}, name=self.name
        )
        attributes = [ir.Attr(a.name, a.type, None) for a in self.attributes]
        return ir.Function(DOMAIN, self.name, graph=graph, attributes=attributes)

    def declare(self, model: ir.Model) -> None:
        """Add the body to the functions of `model`, once, and import the domain."""
        if (DOMAIN, self.name, "") not in model.functions:
            model.functions[DOMAIN, self.name, ""] = self.function(model.graph.opset_imports[""])
        model.graph.opset_imports[DOMAIN] = VERSION

    def node(
        self,
        inputs: Sequence[ir.Value],
        *,
        name: str,
        attributes: Mapping[str, int | float] | None = None,
        wanted: Collection[str] = (),
    ) -> ir.Node:
        """A node of this operator whose results have their types, and shapes where those of `inputs` are known.

        Args:
            wanted: the optional outputs to keep; a result that is left out gets the empty name.
        """
        assert len(inputs) == len(self.inputs), f"{self.name} takes {len(self.inputs)} inputs"
        given = dict(attributes or {})
        assert given.keys() == {a.name for a in self.attributes}, f"{self.name} has other attributes"
        dims = self._dims(inputs)
        outputs = []
        for operand in self.outputs:
            kept = not operand.optional or operand.name in wanted
            shape = _shape(operand.shape, dims)
            outputs.append(
                ir.Value(name=f"{name}.{operand.name}" if kept else "", type=ir.TensorType(operand.dtype), shape=shape)
            )
        made = [ir.Attr(a.name, a.type, given[a.name]) for a in self.attributes]
        return ir.Node(DOMAIN, self.name, inputs, made, outputs=outputs, name=name)

    def _dims(self, inputs: Sequence[ir.Value]) -> dict[str, list[int | ir.SymbolicDim]]:
        """What the letters stand for; a letter of an input without a shape is missing."""
        found: dict[str, list[int | ir.SymbolicDim]] = {"1": [1]}
        for operand, value in zip(self.inputs, inputs, strict=True):
            if value.shape is None or operand.or_one:
                continue
            given, letters = list(value.shape), list(operand.shape)
            if letters[:1] == ["..."]:
                leading = len(given) - len(letters) + 1
                found.setdefault("...", given[:leading])
                given, letters = given[leading:], letters[1:]
            for letter, dim in zip(letters, given, strict=True):
                found.setdefault(letter, [dim])
        return found


def _shape(letters: Dims, dims: Mapping[str, list[int | ir.SymbolicDim]]) -> ir.Shape | None:
    if any(letter not in dims for letter in letters):
        return None
    return ir.Shape([dim for letter in letters for dim in dims[letter]])
