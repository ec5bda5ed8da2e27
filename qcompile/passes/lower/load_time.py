"""Nodes on constants alone: the runtime computes them once, when it loads the model, and keeps the result.

They stand at the beginning of the graph, in the order in which they are made, so that whoever comes later may
read them. DequantizeLinear is none of them: the runtime leaves it in the graph and runs it every time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from qcompile.compiler.codes import Codes
from qcompile.compiler.provenance import stamp


class LoadTime:
    """Writes such nodes for a weight of `node`."""

    def __init__(self, codes: Codes, node: ir.Node) -> None:
        assert isinstance(node.graph, ir.Graph)
        self.codes, self.node, self.graph = codes, node, node.graph

    def once(self, what: str, make: Callable[[], ir.Value]) -> ir.Value:
        """What `make` makes, the same for all who ask for `what`."""
        key = id(self.graph), "at load", what
        if key not in self.codes.values:
            self.codes.values[key] = make()
        return self.codes.values[key]

    def add(self, op: str, inputs: Sequence[ir.Value], name: str, shape: Sequence[int], **numbers: int) -> ir.Value:
        """A float32 result called `name`, or `name_2`, ... when there is one already."""
        made = self.codes.node(op, inputs, name, ir.DataType.FLOAT, inputs[0])
        made.outputs[0].shape = ir.Shape(shape)
        for attribute, number in numbers.items():
            made.attributes.add(ir.AttrInt64(attribute, number))
        stamp(made, self.codes.made_by, [self.node])
        key = id(self.graph), "last at load", ""
        before = self.codes.values.get(key)
        if before is None:
            self.graph.insert_before(next(iter(self.graph)), made)
        else:
            producer = before.producer()
            assert producer is not None
            self.graph.insert_after(producer, made)
        self.codes.values[key] = made.outputs[0]
        return made.outputs[0]

    def cast(self, value: ir.Value, name: str, to: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        assert value.shape is not None
        made = self.add("Cast", [value], name, value.shape.numpy(), to=int(to))
        made.type = ir.TensorType(to)
        return made

    def reshape(self, value: ir.Value, name: str, shape: Sequence[int]) -> ir.Value:
        made = self.add("Reshape", [value, self.integers(shape)], name, shape)
        made.type = value.type
        return made

    def moved(self, value: ir.Value, name: str, axis: int) -> ir.Value:
        """The last axis at `axis`."""
        assert value.shape is not None
        order = list(range(len(value.shape) - 1))
        order.insert(axis, len(order))
        made = self.add("Transpose", [value], name, [value.shape.numpy()[i] for i in order])
        producer = made.producer()
        assert producer is not None
        producer.attributes.add(ir.AttrInt64s("perm", order))
        return made

    def cut(self, value: ir.Value, name: str, axis: int, length: int) -> ir.Value:
        """The first `length` of an axis."""
        assert value.shape is not None
        shape = [length if i == axis else d for i, d in enumerate(value.shape.numpy())]
        bounds = [self.integers([n]) for n in (0, length, axis)]
        return self.add("Slice", [value, *bounds], name, shape)

    def integers(self, numbers: Sequence[int]) -> ir.Value:
        name = "x".join(map(str, numbers))
        return self.codes.constant(self.graph, f"shape_{name}", np.array(numbers, np.int64))
