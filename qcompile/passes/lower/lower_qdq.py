"""Everything else as QuantizeLinear / DequantizeLinear around the float operators.

    DQ(x) -> op(DQ(w), DQ(b)) [-> Relu | Clip] -> Q

The runtime recognises the pattern and runs its integer kernel. A unit that only reads codes has no Q
behind it. The int32 bias has scale s_x * s_w and zero point 0; targets that want a float bias keep it.
Weights: initializers of codes behind a DequantizeLinear, per channel, or in blocks along what is summed over
(opset 21) where they alone are codes. Source: the ONNX and ONNX Runtime documentation of the QDQ format.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from qcompile.compiler.codes import Codes, axis_of
from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import graphs, is_constant, name_of
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import Form, Unit
from qcompile.compiler.provenance import stamp
from qcompile.compiler.specs import PerBlock
from qcompile.compiler.targets.table import Lowering
from qcompile.compiler.units import planned_as


class LowerQdq(Pass):
    """Write the remaining units in Q/DQ form."""

    name: ClassVar[str] = "lower-qdq"
    phase: ClassVar[Phase] = Phase.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.LOWERED})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        codes = Codes.of(model, context, self.name)
        chosen = planned_as(Lowering.QDQ, model, context) + planned_as(Lowering.BLOCKED_DQ, model, context)
        for node, unit, _ in chosen:
            if unit.form in (Form.FULL, Form.PASS):
                _requantize_output(node, unit, codes)
        for node, unit, _ in chosen:
            _dequantize_inputs(node, unit, codes)
        _drop_unread(model)
        return bool(context.plan.units)


def _requantize_output(node: ir.Node, unit: Unit, codes: Codes) -> None:
    """output -> Q -> DQ; everybody who read the output reads the DQ. A graph output keeps its name on the DQ.

    A Relu or Clip goes away: the range of the codes clips. Left in place it would keep the runtime from
    its integer kernel where rounding the zero point moves the range past the bounds.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    output = node.outputs[0]
    if unit.activation is not None:
        _absorb(node, next(iter(output.uses())).node, codes)
    name = name_of(output)
    made = codes.quantized(graph, output)
    uses = [use for use in output.uses() if use.node is not made.producer()]
    dequantized = codes.dequantized(graph, output)
    for use in uses:
        use.node.replace_input_with(use.idx, dequantized)
    for i, result in enumerate(graph.outputs):
        if result is output:
            graph.outputs[i] = dequantized
            output.name, dequantized.name = codes.unique(f"{name}_raw"), name


def _absorb(node: ir.Node, activation: ir.Node, codes: Codes) -> None:
    """Take `activation` out; what `node` writes takes over the name of its result."""
    output, result = node.outputs[0], activation.outputs[0]
    name = result.name
    result.replace_all_uses_with(output, replace_graph_outputs=True)
    result.name, output.name = None, name
    stamp(node, codes.made_by, [node, activation])
    assert activation.graph is not None
    activation.graph.remove(activation, safe=True)


def _dequantize_inputs(node: ir.Node, unit: Unit, codes: Codes) -> None:
    graph, row = node.graph, codes.context.target.row(node)
    assert isinstance(graph, ir.Graph)
    assert row is not None
    for i, name in enumerate(unit.inputs):
        value = node.inputs[i]
        if name is not None and value is not None:
            node.replace_input_with(i, codes.dequantized(graph, value, name))
    if row.weight is None:
        return
    stored = list(codes.weight(graph, unit))
    params = codes.context.plan.weights[str(unit.weight), unit.node].params
    if isinstance(params.spec.granularity, PerBlock) and not params.zero_point.any():
        stored.pop()
    old, name = node.inputs[row.weight], f"{codes.weight_name(unit)}_dequantized"
    assert old is not None
    dequantized = codes.node("DequantizeLinear", stored, name, ir.DataType.FLOAT, old)
    for key, number in axis_of(params).items():
        dequantized.attributes.add(ir.AttrInt64(key, number))
    stamp(dequantized, codes.made_by, [node])
    graph.insert_before(node, dequantized)
    node.replace_input_with(row.weight, dequantized.outputs[0])
    if row.bias is not None and not unit.form.float_arithmetic and not codes.context.target.float_bias:
        _integer_bias(node, unit, row.bias, codes)


def _integer_bias(node: ir.Node, unit: Unit, position: int, codes: Codes) -> None:
    bias = node.inputs[position] if len(node.inputs) > position else None
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    if bias is None or not is_constant(bias):
        return
    integers, scale, zero = codes.bias(graph, bias, unit)
    name = f"{bias.name}_{unit.node}_dequantized"
    made = codes.node("DequantizeLinear", [integers, scale, zero], name, ir.DataType.FLOAT, integers)
    made.attributes.add(ir.AttrInt64("axis", 0))
    stamp(made, codes.made_by, [node])
    graph.insert_before(node, made)
    node.replace_input_with(position, made.outputs[0])


def _drop_unread(model: ir.Model) -> None:
    """Take out conversions that nobody reads: the runtime would run them all the same."""
    for graph in graphs(model):
        for node in reversed(graph):
            unread = not any(v.uses() or v.is_graph_output() for v in node.outputs)
            if node.op_type == "DequantizeLinear" and unread:
                graph.remove(node, safe=True)
