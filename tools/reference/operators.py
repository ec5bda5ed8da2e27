"""docs/operators.md: the operators of the domain `qcompile`, each with its operands and its body."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

import onnx_ir as ir

from qcompile.compiler.operators import FAMILIES, Operand, Operator, catalogue
from qcompile.compiler.operators.catalogue import Family
from tools.reference.markdown import GENERATED, table

_HEAD = """
# Operators

On NVIDIA GPUs the fast layers are operators of the domain `qcompile` (version 1). Each carries its own definition, a
function body in standard operators that lies in the compiled model:

- where the library of kernels is loaded, ONNX Runtime runs our kernel;
- anywhere else it inlines the body and computes the same, on the CPU or on the GPU. Every node of every body is one
  that the CUDA provider takes, so nothing goes to the host and back. (Reductions of that provider are cuDNN's: without
  our kernels, `QuantizeRows` and the norms need cuDNN installed.)

So the bodies on this page are the specification of the kernels, and what the kernels are tested against.

A name says everything that differs between variants, element types included: `{Bias}` stands for *Bias* or nothing,
`{Activation}` for *Relu*, *Gelu*, *Silu* or nothing, `{T}` for the float type T, *Fp16*, *Bf16* or nothing for
float32. In shapes, `...` are any leading dimensions, also none; together they count M rows, and M may be 0.

"""

_SHOWN = {
    "quantize_rows": ("Row quantization", ["QuantizeRowsFp16", "QuantizeRowsE4M3"]),
    "norm_quant": ("Norm and quantization", ["AddLayerNormQuantFp16", "RMSNormQuant"]),
    "linear_w8a8": ("Linear layer, int8", ["LinearW8A8BiasGeluFp16", "LinearW8A8BiasReluRequant"]),
    "linear_e4m3": ("Linear layer, FP8", ["LinearE4M3BiasSiluFp16"]),
    "linear_outliers": ("Linear layer, int8 with outlier columns", ["LinearOutliersW8A8BiasSiluFp16"]),
    "linear_w4a16": ("Linear layer, 4-bit weights", ["LinearW4A16ZeroBiasFp16"]),
    "linear24": ("Linear layer, 2:4 sparse", ["Linear24BiasReluFp16"]),
}
"""Of each module: a heading, and the variants that stand on the page. Between them every part of a body occurs."""


def page() -> str:
    """The text of the page."""
    modules = list(dict.fromkeys(family.make.__module__ for family in FAMILIES))
    return GENERATED + _HEAD + "".join(_section(m) for m in modules)


def _section(module: str) -> str:
    families = [family for family in FAMILIES if family.make.__module__ == module]
    heading, shown = _SHOWN[module.rsplit(".", 1)[1]]
    title, _, rest = inspect.cleandoc(sys.modules[module].__doc__ or "").partition("\n\n")
    names = "".join(f"- {_names(family)}\n" for family in families)
    known = catalogue()
    entries = "".join(_entry(known[name]) for name in shown)
    return f"\n## {heading}\n\n{title}\n\n```text\n{rest}\n```\n\n{names}{entries}"


def _names(family: Family) -> str:
    """The pattern of the names and how many they are."""
    pattern, _, rest = (inspect.getdoc(family.make) or "").partition(":")
    return f"`{pattern.rstrip('.')}`, {len(family.variants())} operators{':' + rest if rest else '.'}"


def _entry(operator: Operator) -> str:
    rows = [["in", *_operand(o)] for o in operator.inputs] + [["out", *_operand(o)] for o in operator.outputs]
    rows += [["attribute", f"`{a.name}`", a.type.name.lower(), "", a.meaning] for a in operator.attributes]
    operands = table(["", "Name", "Type", "Shape", "Meaning"], rows)
    body = "\n".join(body_lines(operator.function(max(21, operator.lowest_opset))))
    said = f"`{operator.meaning}`. Opset {operator.lowest_opset} or later."
    return f"\n### {operator.name}\n\n{said}\n\n{operands}\n\n```text\n{body}\n```\n"


def _operand(operand: Operand) -> list[str]:
    shape = f"[{', '.join(operand.shape)}]"
    extra = " or [1], one for all rows" if operand.or_one else ""
    left_out = ", may be left out" if operand.optional else ""
    return [f"`{operand.name}`", _type(operand.dtype), shape + extra, operand.meaning + left_out]


def body_lines(function: ir.Function) -> Iterator[str]:
    """One line a node; constants stand where they are read."""
    constants = {node.outputs[0]: _constant(node) for node in function if node.op_type == "Constant"}
    given = ", ".join(str(v.name) for v in function.inputs)
    yield f"{function.name}({given}) -> {', '.join(str(v.name) for v in function.outputs)}"
    for node in function:
        if node.op_type != "Constant":
            inputs = [constants.get(v, str(v.name)) for v in node.inputs if v is not None]
            attributes = [f"{name}={_attribute(a)}" for name, a in node.attributes.items()]
            yield f"  {node.outputs[0].name} = {node.op_type}({', '.join([*inputs, *attributes])})"


def _constant(node: ir.Node) -> str:
    (attribute,) = node.attributes.values()
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    tensor = attribute.as_tensor()
    if tensor.dtype is ir.DataType.INT64:
        return str(tensor.numpy().tolist())
    values = tensor.numpy()
    return f"{values:.9g}" if values.ndim == 0 else f"{_type(tensor.dtype)} {values.tolist()}"


def _attribute(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    if attribute.name == "to":
        return _type(ir.DataType(attribute.as_int()))
    return str(list(attribute.as_ints())) if attribute.type is ir.AttributeType.INTS else str(attribute.value)


def _type(dtype: ir.DataType) -> str:
    return "float32" if dtype is ir.DataType.FLOAT else dtype.name.lower()
