"""Each linear or convolution unit as one operator that carries its own definition.

    qcompile::ConvW8A8BiasRequant(x_q, s_x, z_x, w_q, s_w, z_w, b_q, s_b, z_b, s_y, z_y) -> y_q
    body:  Q(Conv(DQ(x_q), DQ(w_q), DQ(b_q)), s_y, z_y)

Where a kernel for the operator is registered, it runs; elsewhere the runtime inlines the body, which is
written in standard operators and is the kernel's specification. x_q: codes [N, C, ...] or [..., K]; w_q:
int8; b_q: int32 with s_b = s_x s_w, or float b where the target wants that; a unit with float output ends
without Q. Relu and Clip need no node: the range of y expresses them. The name says which parts a variant
has: Bias or FloatBias, Requant.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from qcompile.compiler.codes import Codes, axis_of
from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import name_of
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import Form, Unit
from qcompile.compiler.provenance import stamp
from qcompile.compiler.units import bias_add, planned

DOMAIN = "qcompile"
_ATTRIBUTES = {
    "Conv": {
        "auto_pad": ir.AttributeType.STRING,
        "dilations": ir.AttributeType.INTS,
        "group": ir.AttributeType.INT,
        "kernel_shape": ir.AttributeType.INTS,
        "pads": ir.AttributeType.INTS,
        "strides": ir.AttributeType.INTS,
    },
    "Gemm": {"transB": ir.AttributeType.INT},
    "MatMul": {},
}
_NAMES = {"Conv": "ConvW8A8", "Gemm": "GemmW8A8", "MatMul": "LinearW8A8"}


class Outline(Pass):
    """Wrap the quantized linear and convolution units as operators of the domain `qcompile`."""

    name: ClassVar[str] = "outline"
    phase: ClassVar[Phase] = Phase.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        codes = Codes.of(model, context, self.name)
        chosen = [(n, u) for n, u, _ in planned(model, context) if u.weight is not None and n.op_type in _NAMES]
        for node, unit in chosen:
            _outline(model, node, unit, codes)
        if chosen:
            model.graph.opset_imports[DOMAIN] = 1
        return bool(chosen)


def _outline(model: ir.Model, node: ir.Node, unit: Unit, codes: Codes) -> None:
    graph, plan = node.graph, codes.context.plan
    assert isinstance(graph, ir.Graph)
    activation, name = node.inputs[0], unit.inputs[0]
    assert activation is not None
    assert name is not None
    weight = codes.weight(graph, unit)
    params = plan.weights[str(unit.weight), unit.node].params
    inputs = [
        codes.quantized(graph, activation, name),
        *codes.scale_and_zero(graph, name, plan.tensors[name]),
        *weight,
    ]
    last = node
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if unit.bias is not None:
        last, bias = bias_add(node)
    kind = ""
    if bias is not None:
        kind = "FloatBias" if codes.context.target.float_bias else "Bias"
        inputs += [bias] if kind == "FloatBias" else codes.bias(graph, bias, unit)
    if unit.activation is not None:
        last = next(iter(last.outputs[0].uses())).node
    old = last.outputs[0]
    requant = unit.form is Form.FULL
    if requant:
        inputs += codes.scale_and_zero(graph, name_of(old), plan.tensors[name_of(old)])
    axis = axis_of(params)["axis"]
    function = _function(model, node.op_type, kind, requant)
    attributes = [a for name, a in node.attributes.items() if name in _ATTRIBUTES[node.op_type]]
    made = ir.Node(
        DOMAIN,
        function,
        inputs,
        [*attributes, ir.AttrInt64("weight_axis", axis)],
        name=codes.unique(f"{unit.node}_int8"),
        outputs=[ir.Value(shape=old.shape, type=old.type)],
    )
    chain = _chain(node, last)
    stamp(made, codes.made_by, chain)
    if requant:
        codes.replace_by_codes(graph, node, chain, made)
    else:
        codes.replace(graph, node, chain, made)


def _chain(first: ir.Node, last: ir.Node) -> list[ir.Node]:
    chain = [first]
    while chain[-1] is not last:
        chain.append(next(iter(chain[-1].outputs[0].uses())).node)
    return chain


def _function(model: ir.Model, op_type: str, bias: str, requant: bool) -> str:
    """Name of the model-local function with these parts (`bias`: "Bias", "FloatBias" or ""); it is added to the
    model when it is new."""
    name = _NAMES[op_type] + bias + ("Requant" if requant else "")
    if (DOMAIN, name, "") in model.functions:
        return name
    groups = ["x", "w", *(["b"] if bias == "Bias" else [])]
    values = {g: [ir.val(f"{g}_{part}") for part in ("q", "scale", "zero_point")] for g in groups}
    inputs = [v for g in groups for v in values[g]]
    body: list[ir.Node] = []

    def add(op: str, inputs: list[ir.Value], output: str, *attributes: ir.Attr) -> ir.Value:
        node = ir.Node("", op, inputs, attributes, name=output, outputs=[ir.val(output)])
        body.append(node)
        return node.outputs[0]

    x = add("DequantizeLinear", values["x"], "x")
    w = add("DequantizeLinear", values["w"], "w", ir.RefAttr("axis", "weight_axis", ir.AttributeType.INT))
    operands = [x, w]
    b = None
    if bias == "Bias":
        b = add("DequantizeLinear", values["b"], "b", ir.AttrInt64("axis", 0))
    elif bias:
        b = ir.val("b")
        inputs.append(b)
    if b is not None and op_type != "MatMul":
        operands.append(b)
    references = [ir.RefAttr(n, n, t) for n, t in _ATTRIBUTES[op_type].items()]
    y = add(op_type, operands, "y", *references)
    if b is not None and op_type == "MatMul":
        y = add("Add", [y, b], "y_biased")
    if requant:
        result = [ir.val("y_scale"), ir.val("y_zero_point")]
        inputs += result
        y = add("QuantizeLinear", [y, *result], "y_q")
    graph = ir.Graph(inputs, [y], nodes=body, opset_imports={"": model.graph.opset_imports[""]}, name=name)
    parameters = [
        ir.Attr("weight_axis", ir.AttributeType.INT, None),
        *(ir.Attr(n, t, None) for n, t in _ATTRIBUTES[op_type].items()),
    ]
    model.functions[DOMAIN, name, ""] = ir.Function(DOMAIN, name, graph=graph, attributes=parameters)
    return name
