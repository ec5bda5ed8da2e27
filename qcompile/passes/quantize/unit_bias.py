"""The constant bias of a planned unit: read it, write it, add one where there is none."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import add_initializer, constant, name_of
from qcompile.compiler.plan import Form, Unit
from qcompile.compiler.provenance import stamp
from qcompile.compiler.units import bias_add
from qcompile.passes.prepare.surgery import Names, bypass
from qcompile.passes.prepare.untie import set_constant

State = tuple[ir.Value | None, ir.TensorProtocol | None]
"""The initializer that holds a bias, and its tensor."""

_WITH_INPUT = {"Conv", "ConvTranspose", "Gemm"}


@dataclass
class UnitBias:
    """One value for each output channel of a unit.

    Attributes:
        channels: how many there are.
        made_by: the pass that changes it.
    """

    node: ir.Node
    channels: int
    names: Names
    context: CompileContext
    made_by: str

    @property
    def unit(self) -> Unit:
        return self.context.plan.units[str(self.node.name)]

    @property
    def axis(self) -> int:
        """Where the channels lie in the unit's result."""
        return 1 if self.node.op_type in ("Conv", "ConvTranspose") else -1

    def read(self) -> npt.NDArray[np.float32]:
        """The bias, shape [channels]; zeros where there is none."""
        array = constant(self.value)
        return np.broadcast_to(0 if array is None else array.reshape(-1), self.channels).astype(np.float32)

    def write(self, bias: npt.NDArray[np.float32]) -> None:
        """Set the bias; other readers of the same initializer keep theirs."""
        at, position = self._place()
        if at is None:
            self._insert(bias)
        else:
            set_constant(at, position, bias.astype(np.float32), self.names, "bias")

    def state(self) -> State:
        """What `restore` needs to undo every `write` from here on."""
        value = self.value
        return value, value.const_value if value is not None else None

    def restore(self, state: State) -> None:
        written, (value, tensor) = self.value, state
        at, position = self._place()
        if written is None or at is None:
            return
        if value is not None:
            value.const_value = tensor
            at.replace_input_with(position, value)
        elif at is self.node:
            at.resize_inputs(position)
        else:
            bypass(at, self.node.outputs[0], take_name=True)
            self.context.plan.units[self.unit.node] = replace(self.unit, bias=None)
        if written.name and not written.uses() and isinstance(written.graph, ir.Graph):
            del written.graph.initializers[written.name]

    def _place(self) -> tuple[ir.Node | None, int]:
        """The node that reads the bias, or may, and at which input."""
        if self.node.op_type in _WITH_INPUT:
            return self.node, 2
        if self.unit.bias is None:
            return None, 1
        add, _ = bias_add(self.node)
        return add, 1 if add.inputs[0] is self.node.outputs[0] else 0

    @property
    def value(self) -> ir.Value | None:
        at, position = self._place()
        return at.inputs[position] if at is not None and len(at.inputs) > position else None

    def _insert(self, bias: npt.NDArray[np.float32]) -> None:
        """An Add behind the product, which takes over the name of the unit's result."""
        product, graph = self.node.outputs[0], self.node.graph
        assert isinstance(graph, ir.Graph)
        name = name_of(product)
        added = add_initializer(graph, self.names.fresh(f"{self.node.name}_bias"), bias.astype(np.float32))
        product.name = self.names.fresh(f"{name}_product")
        result = ir.Value(name=name, type=product.type, shape=product.shape)
        product.replace_all_uses_with(result, replace_graph_outputs=True)
        label = self.names.fresh(f"{self.node.name}_bias_add")
        add = ir.Node("", "Add", [product, added], outputs=[result], name=label)
        graph.insert_after(self.node, add)
        stamp(add, self.made_by, [self.node])
        self.context.plan.units[self.unit.node] = replace(self.unit, bias=add.name)


def bias_of(node: ir.Node, unit: Unit, names: Names, context: CompileContext, made_by: str) -> UnitBias | None:
    """The bias of `unit`, or None where it cannot have a constant one of one value for each channel."""
    if node.op_type not in _WITH_INPUT | {"MatMul"} or node.attributes.get_float("beta", 1.0) != 1.0:
        return None
    if node.op_type == "MatMul" and unit.form is Form.FULL:
        return None
    found = UnitBias(node, _channels(node), names, context, made_by)
    value = found.value
    array = constant(value)
    fits = value is None or (array is not None and array.size in (1, found.channels))
    return found if fits else None


def _channels(node: ir.Node) -> int:
    """Output channels, by the shape of the weight."""
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    shape = weight.shape.numpy()
    match node.op_type:
        case "Conv":
            return int(shape[0])
        case "ConvTranspose":
            return int(shape[1]) * node.attributes.get_int("group", 1)
        case "Gemm" if node.attributes.get_int("transB", 0):
            return int(shape[0])
    return int(shape[-1])
