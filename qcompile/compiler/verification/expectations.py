"""What an artifact claims to run in low precision, read off its own Q/DQ pairs and integer operators.

Used where no plan is at hand: `qcompile verify` on a model that somebody else may have quantized.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qcompile.compiler.graph import is_constant, name_of, nodes
from qcompile.compiler.operators.calls import form_of, is_linear
from qcompile.compiler.plan import Form, Unit
from qcompile.compiler.targets.table import Row, Target

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
INTEGER_OPERATORS = {
    "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "QGemm", "QLinearAdd", "QLinearMul",
    "QLinearConcat", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearAveragePool", "QLinearGlobalAveragePool",
    "QLinearSoftmax", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits",
    "QAttention", "MatMulBnb4", "GatherBlockQuantized", "MatMulBlockQuantizedFp8Weight",
    "MatMulBlockQuantizedFp4Weight",
}  # fmt: skip
INTEGER_INPUTS = 4
"""MatMulNBits' accuracy_level at which it quantizes its inputs."""

_ENDINGS = {"Relu", "Clip", "Add"}  # what may stand between an operator and its QuantizeLinear


def expected_units(model: ir.Model, target: Target) -> dict[str, Unit]:
    """The units of the artifact `model`, by node name, as `target` would run them."""
    found: dict[str, Unit] = {}
    for node in nodes(model):
        unit = _integer_operator(node) or _operator_call(node) or _between_conversions(node, target)
        if unit is not None:
            found[unit.node] = unit
    return found


def rows_for(target: Target, op_type: str) -> list[Row]:
    """Every row of an operator: its variants cannot be told apart once Q/DQ hide the weights."""
    return [row for row in target.rows if row.op_type == op_type]


def dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that makes `value`, or None."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def is_weight(conversion: ir.Node) -> bool:
    """Whether a DequantizeLinear reads constant codes, or those of a constant behind a QuantizeLinear."""
    codes = conversion.inputs[0]
    made = codes.producer() if codes is not None else None
    if made is not None and made.op_type == "QuantizeLinear":
        codes = made.inputs[0]
    return is_constant(codes)


def quantizer_after(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear behind `node`, directly or behind its bias Add and its Relu or Clip."""
    current = node
    for _ in range(3):
        if not current.outputs:
            return None
        uses = list(current.outputs[0].uses())
        for use in uses:
            if use.node.op_type == "QuantizeLinear" and use.idx == 0:
                return use.node
        if len(uses) != 1 or uses[0].node.op_type not in _ENDINGS:
            return None
        current = uses[0].node
        if current.op_type == "Add" and not any(is_constant(v) for v in current.inputs):
            return None
    return None


def operator_form(node: ir.Node) -> Form:
    """How one of INTEGER_OPERATORS computes."""
    if node.op_type == "GatherBlockQuantized":
        return Form.ROWS
    if node.op_type in ("MatMulBnb4", "MatMulBlockQuantizedFp8Weight", "MatMulBlockQuantizedFp4Weight"):
        return Form.WEIGHTS
    if node.op_type == "MatMulNBits":
        return Form.BLOCKS if node.attributes.get_int("accuracy_level", 0) == INTEGER_INPUTS else Form.WEIGHTS
    if node.op_type.startswith("DynamicQuantize"):
        return Form.DYNAMIC
    return Form.FULL if node.op_type.startswith("QLinear") else Form.INPUTS


def _whole_unit(node: ir.Node, form: Form) -> Unit:
    """The unit of an operator that the runtime takes as a whole: no conversions stand around it."""
    return Unit(
        node=str(node.name),
        op_type=node.op_type,
        form=form,
        inputs=tuple(None for _ in node.inputs),
        output=name_of(node.outputs[0]),
    )


def _integer_operator(node: ir.Node) -> Unit | None:
    if node.op_type not in INTEGER_OPERATORS:
        return None
    return _whole_unit(node, operator_form(node))


def _between_conversions(node: ir.Node, target: Target) -> Unit | None:
    """`node` as a unit when its inputs are dequantized the way a row of the target wants."""
    if node.op_type in _CONVERSIONS or node.domain not in ("", "ai.onnx"):
        return None
    sources = [dequantizer(v) for v in node.inputs]
    for row in rows_for(target, node.op_type):
        wanted = row.activations or tuple(range(len(node.inputs)))
        if row.weight is not None and (len(sources) <= row.weight or sources[row.weight] is None):
            continue
        if any(i >= len(sources) or sources[i] is None for i in wanted):
            continue
        after = quantizer_after(node)
        rounded = any(_is_rounded(s, target) for i, s in enumerate(sources) if i in wanted)
        form = Form.ROUNDED if rounded else _form(row.forms, after is not None)
        if form is None or all(is_weight(s) for s in sources if s is not None):
            continue
        return Unit(
            node=str(node.name),
            op_type=node.op_type,
            form=form,
            inputs=tuple(_quantized_value(source) if i in wanted else None for i, source in enumerate(sources)),
            output=name_of(after.inputs[0] if after and after.inputs[0] else node.outputs[0]),
        )
    return None


def _is_rounded(conversion: ir.Node | None, target: Target) -> bool:
    """Whether a DequantizeLinear reads codes on which the target computes nothing."""
    codes = conversion.inputs[0] if conversion is not None else None
    dtype = codes.dtype if codes is not None else None
    computed = [f.computed for f in target.formats if f.activation.dtype == dtype]
    return bool(computed) and not any(computed)


def _operator_call(node: ir.Node) -> Unit | None:
    """`node` as a unit when it is a linear layer of the domain `qcompile` on codes."""
    form = form_of(node) if is_linear(node) else Form.FLOAT
    return _whole_unit(node, form) if form.low_precision else None


def _quantized_value(conversion: ir.Node | None) -> str | None:
    """Name of the float value that a DequantizeLinear gives back, as far as one was quantized."""
    codes = conversion.inputs[0] if conversion is not None else None
    made = codes.producer() if codes is not None else None
    if made is not None and made.op_type == "QuantizeLinear" and made.inputs[0] is not None:
        return name_of(made.inputs[0])
    return name_of(codes).removesuffix("_quantized") if codes is not None else None


def _form(offered: Mapping[Form, object], quantized_output: bool) -> Form | None:
    wanted = (Form.FULL, Form.PASS, Form.INPUTS) if quantized_output else (Form.INPUTS,)
    return next((form for form in wanted if form in offered), None)
