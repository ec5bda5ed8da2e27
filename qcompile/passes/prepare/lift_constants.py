"""Constants become initializers."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import graphs, name_of
from qcompile.compiler.passes import Pass, Phase
from qcompile.compiler.provenance import stamp
from qcompile.passes.prepare.surgery import Names


class LiftConstants(Pass):
    """Turn Constant nodes into initializers of their graph, in control-flow bodies too.

    A constant that a graph returns is read through an Identity node, so that the output stays a
    node's output. Initializers that are also inputs of the main graph (models of IR version 3 list
    them all) stop being inputs: what is compiled into an artifact can no longer be overridden.
    """

    name: ClassVar[str] = "lift-constants"
    phase: ClassVar[Phase] = Phase.PREPARE
    float_equivalent: ClassVar[bool] = True

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        modified = _fix_overridable_inputs(model, context)
        names = Names(model)
        for graph in list(graphs(model)):
            for node in list(graph):
                if node.op_type == "Constant" and node.domain == "":
                    modified |= self._lift(graph, node, names)
        return modified

    def _lift(self, graph: ir.Graph, node: ir.Node, names: Names) -> bool:
        tensor = _tensor(node)
        if tensor is None:
            return False
        output = node.outputs[0]
        name = name_of(output)
        output.name = None
        returned = output.is_graph_output()
        tensor.name = names.fresh(f"{name}_constant") if returned else name
        value = ir.Value(
            name=tensor.name, shape=ir.Shape(tensor.numpy().shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        stamp(value, self.name, [node])
        graph.register_initializer(value)
        replacement = value
        if returned:
            identity = ir.node("Identity", [value], name=node.name)
            stamp(identity, self.name, [node])
            graph.insert_before(node, identity)
            [replacement] = identity.outputs
            replacement.name, replacement.shape, replacement.type = name, value.shape, value.type
        output.replace_all_uses_with(replacement, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        return True


def _tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """What a Constant node holds, as a tensor; None for sparse tensors and unbound attributes."""
    [(kind, attribute)] = node.attributes.items()
    if attribute.is_ref():
        return None
    match kind:
        case "value":
            return attribute.as_tensor()
        case "value_int":
            return ir.tensor(np.array(attribute.as_int(), np.int64))
        case "value_ints":
            return ir.tensor(np.array(attribute.as_ints(), np.int64))
        case "value_float":
            return ir.tensor(np.array(attribute.as_float(), np.float32))
        case "value_floats":
            return ir.tensor(np.array(attribute.as_floats(), np.float32))
        case "value_string":
            return ir.StringTensor(np.array(attribute.as_string().encode(), object), shape=ir.Shape([]))
        case "value_strings":
            texts = [s.encode() for s in attribute.as_strings()]
            return ir.StringTensor(np.array(texts, object), shape=ir.Shape([len(texts)]))
    return None


def _fix_overridable_inputs(model: ir.Model, context: CompileContext) -> bool:
    inputs = model.graph.inputs
    fixed = [v for v in inputs if v.is_initializer()]
    for value in fixed:
        inputs.remove(value)
    if fixed and (model.ir_version or 0) >= 4:
        names = ", ".join(name_of(v) for v in fixed[:5]) + (", ..." if len(fixed) > 5 else "")
        context.notice(f"{len(fixed)} inputs with a default value are now constants: {names}")
    return bool(fixed)
