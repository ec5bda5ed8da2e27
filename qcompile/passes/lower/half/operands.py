"""Which inputs and outputs of an operator have one float type, by the operator's own definition.

ONNX gives the operands of an operator type variables: the data of a Resize and its result are T, its scales are
float32 whatever T is. The variants of a `qcompile` operator differ in the types of the operands that follow T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import onnx_ir as ir

from qcompile.compiler.graph import is_float32
from qcompile.compiler.operators.catalogue import catalogue
from qcompile.compiler.operators.definition import DOMAIN, FLOAT_TYPES, Operator

if TYPE_CHECKING:
    import onnx

_WITH = {
    "Attention": {"T1", "T2", "U"},
    "DequantizeLinear": {"T2", "T3"},
    "Pow": {"T", "T1"},
    "QuantizeLinear": {"T1", "T2"},
    "RMSNormalization": {"T", "V"},
}
"""Operators with more than one variable whose kernels want one type."""

_STRINGS = {ir.DataType.FLOAT16: "tensor(float16)", ir.DataType.BFLOAT16: "tensor(bfloat16)"}

_CODES = {"MatMulNBits": (0, 2, 3, 5), "MatMulBnb4": (0, 2), "GatherBlockQuantized": (2,)}
"""Float operands of operators of com.microsoft on weights as codes: activation, scales, zero points where they are no
codes, bias."""


@dataclass(frozen=True)
class Operands:
    """Positions of the float32 inputs and outputs of a node that change their type together."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def operands(node: ir.Node, version: int, dtype: ir.DataType) -> Operands | None:
    """What of `node` would be `dtype`, at opset `version`; None where the operator has no such variant."""
    if node.domain == DOMAIN:
        return _of_variant(node, version, dtype)
    if node.domain == "com.microsoft" and node.op_type in _CODES:
        return _present(node, _CODES[node.op_type], (0,))
    if node.domain not in ("", "ai.onnx"):
        return None
    schema = _schema(node.op_type, version)
    if schema is None:
        return None
    if node.op_type == "Cast" and node.outputs[0].dtype is dtype:
        return _present(node, (0,), ())
    ins = [_variable(schema.inputs, i) for i in range(len(node.inputs))]
    outs = [_variable(schema.outputs, i) for i in range(len(node.outputs))]
    main = next((v for v, value in zip(outs, node.outputs, strict=True) if is_float32(value)), None)
    if main is None and node.op_type != "Cast":
        main = next((v for v, value in zip(ins, node.inputs, strict=True) if is_float32(value)), None)
    together = _WITH.get(node.op_type, {main})
    takes = {c.type_param_str for c in schema.type_constraints if _STRINGS[dtype] in c.allowed_type_strs}
    if main not in takes:
        return None
    inputs = [i for i, v in enumerate(ins) if v in together]
    return _present(node, tuple(inputs), tuple(i for i, v in enumerate(outs) if v in together))


def half_variant(node: ir.Node, dtype: ir.DataType) -> Operator | None:
    """The operator that computes what the `qcompile` operator of `node` does, with `dtype` in the place of float32."""
    return _operators().get(node.op_type + FLOAT_TYPES[dtype])


def _of_variant(node: ir.Node, version: int, dtype: ir.DataType) -> Operands | None:
    full, half = _operators().get(node.op_type), half_variant(node, dtype)
    if full is None or half is None or version < half.lowest_opset:
        return None
    inputs = [i for i, (a, b) in enumerate(zip(full.inputs, half.inputs, strict=True)) if a.dtype != b.dtype]
    outputs = [i for i, (a, b) in enumerate(zip(full.outputs, half.outputs, strict=True)) if a.dtype != b.dtype]
    return _present(node, tuple(inputs), tuple(outputs))


@cache
def _operators() -> dict[str, Operator]:
    return catalogue()


def _present(node: ir.Node, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Operands:
    return Operands(
        tuple(i for i in inputs if i < len(node.inputs) and is_float32(node.inputs[i])),
        tuple(i for i in outputs if i < len(node.outputs) and is_float32(node.outputs[i])),
    )


@cache
def _schema(op_type: str, version: int) -> onnx.defs.OpSchema | None:
    import onnx

    try:
        return onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None


def _variable(formal: Sequence[onnx.defs.OpSchema.FormalParameter], position: int) -> str | None:
    """The type variable of an operand; the last formal operand stands for any number where it is variadic."""
    if position < len(formal):
        return str(formal[position].type_str)
    return str(formal[-1].type_str) if formal else None
