"""Weights that a model file holds as codes, read off the operators that read them, in the files of any tool.

Codes are read by the operator itself, through a DequantizeLinear, or through nodes on constants alone that a pass made
and the runtime computes when it loads the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from qcompile.compiler.formats import FORMATS, NF4
from qcompile.compiler.graph import constant, is_constant
from qcompile.compiler.provenance import PASS
from qcompile.compiler.report import CodedWeights

_PARAMETERS = {
    "MatMulNBits": (2, 3),
    "MatMulBnb4": (2,),
    "GatherBlockQuantized": (2, 3),
    "MatMulBlockQuantizedFp8Weight": (2, 3),
    "MatMulBlockQuantizedFp4Weight": (2, 3, 4),
    "LinearW4A16": (2,),
    "LinearW4A16Zero": (2, 3),
}
"""Inputs that are scales and zero points; of a `qcompile` operator the endings for bias and type are left out."""

_ON_DEVICES_ALONE = frozenset({"MatMulBlockQuantizedFp8Weight", "MatMulBlockQuantizedFp4Weight"})

_TABLES = ("Gather", "GatherBlockQuantized")
_FLOAT_OPERATORS = ("Conv", "ConvTranspose", "Gather", "Gemm", "GRU", "LSTM", "MatMul")
_NAMES = {f.dtype: name for name, f in FORMATS.items() if f.scales is FORMATS["int8"].scales and not f.levels}


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """One weight.

    Attributes:
        codes: the stored tensor.
        parameters: stored scales and zero points.
        format: "int4", "uint4", "nf4", "nvfp4", "fp8-e4m3", ...
        block: weights that share a scale; None where it is a whole channel.
        elements: how many weights.
        restored: it is float once the model is loaded.
    """

    codes: ir.Value
    parameters: tuple[ir.Value, ...]
    format: str
    block: int | None
    elements: int
    restored: bool = False

    @property
    def bytes(self) -> int:
        """Codes, scales and zero points."""
        return sum(v.const_value.nbytes for v in (self.codes, *self.parameters) if v.const_value is not None)

    def __str__(self) -> str:
        block = f" in blocks of {self.block}" if self.block else ""
        return f"{self.format} weights{block}{', float once loaded' if self.restored else ''}"


def restores(node: ir.Node) -> bool:
    """Whether a pass made `node` to turn stored codes into what an operator reads, once, when the model is loaded."""
    return (
        node.op_type != "DequantizeLinear"
        and PASS in node.metadata_props
        and bool(node.inputs)
        and all(map(_is_stored, node.inputs))
    )


def _is_stored(value: ir.Value | None) -> bool:
    if value is None or is_constant(value):
        return value is not None
    producer = value.producer()
    return producer is not None and restores(producer)


def stored_behind(value: ir.Value | None) -> list[ir.Value]:
    """The stored tensors that `value` is made of, the largest first; empty for an activation."""
    if value is None or not _is_stored(value):
        return []
    producer = value.producer()
    if producer is None or not restores(producer):
        return [value]
    found = {v: None for given in producer.inputs for v in stored_behind(given)}
    return sorted(found, key=lambda v: -_nbytes(v))


def _nbytes(value: ir.Value) -> int:
    return value.const_value.nbytes if value.const_value is not None else 0


def kernel_parameters(node: ir.Node) -> tuple[int, ...]:
    """Positions of scales and zero points in an operator that reads codes by itself; empty for any other."""
    return _PARAMETERS.get(_kind(node), ())


def not_on_the_cpu(model: ir.Model) -> str:
    """An operator of `model` that ONNX Runtime has for other devices alone, empty when there is none."""
    return next((n.op_type for n in model.graph.all_nodes() if n.op_type in _ON_DEVICES_ALONE), "")


def _kind(node: ir.Node) -> str:
    if node.op_type.startswith("LinearW4A16"):
        return "LinearW4A16Zero" if "Zero" in node.op_type else "LinearW4A16"
    return node.op_type


def stored_weight(node: ir.Node) -> StoredWeight | None:
    """The weight of `node` that is stored as codes while its other inputs are float, or None."""
    position = 0 if node.op_type in _TABLES else 1
    weight = node.inputs[position] if len(node.inputs) > position else None
    if weight is None:
        return None
    if kernel_parameters(node):
        return _read_by_kernel(node, weight)
    if node.op_type not in _FLOAT_OPERATORS:
        return None
    producer = weight.producer()
    if producer is not None and restores(producer) and weight.shape is not None:
        return _restored(weight)
    if producer is None or producer.op_type != "DequantizeLinear" or not is_constant(producer.inputs[0]):
        return None
    activation = node.inputs[1 - position]
    given = activation.producer() if activation is not None else None
    return None if given is not None and given.op_type == "DequantizeLinear" else _dequantized(producer)


def _read_by_kernel(node: ir.Node, weight: ir.Value) -> StoredWeight | None:
    stored = stored_behind(weight)
    if not stored or stored[0].shape is None:
        return None
    codes, attributes = stored[0], node.attributes
    shape = prod(codes.shape.numpy()) if codes.shape is not None else 0
    positions = [i for i in kernel_parameters(node) if i < len(node.inputs)]
    parameters = tuple(dict.fromkeys(v for i in positions for v in stored_behind(node.inputs[i])))
    signed = "uint" if len(positions) > 1 and node.inputs[positions[1]] is not None else "int"
    bits = attributes.get_int("bits", 4)
    match _kind(node):
        case "MatMulNBits":
            name, elements = f"{signed}{bits}", attributes.get_int("K", 0) * attributes.get_int("N", 0)
        case "MatMulBnb4":
            name = "nf4" if attributes.get_int("quant_type", 0) else "fp4"
            elements = attributes.get_int("K", 0) * attributes.get_int("N", 0)
        case "GatherBlockQuantized" if codes.dtype is ir.DataType.UINT8:
            name, elements = f"{signed}{bits}", shape * 8 // bits
        case "MatMulBlockQuantizedFp4Weight":
            name, elements = "nvfp4", 2 * shape
        case _:
            name, elements = _name(codes), shape
    return StoredWeight(codes, parameters, name, attributes.get_int("block_size", 0) or None, elements)


def _dequantized(conversion: ir.Node) -> StoredWeight | None:
    codes = conversion.inputs[0]
    assert codes is not None
    if codes.shape is None:
        return None
    parameters = tuple(v for v in conversion.inputs[1:] if v is not None)
    block = conversion.attributes.get_int("block_size", 0) or None
    return StoredWeight(codes, parameters, _name(codes), block, prod(codes.shape.numpy()))


def _restored(weight: ir.Value) -> StoredWeight | None:
    """Codes are what no scale is: the tensor of most elements."""
    stored = stored_behind(weight)
    codes = max(stored, key=lambda v: prod(v.shape.numpy()) if v.shape is not None else 0)
    if codes.dtype not in _NAMES:
        return None
    assert weight.shape is not None
    assert codes.shape is not None
    shape = codes.shape.numpy()
    tables = [a for v in stored if (a := constant(v)) is not None and a.ndim == 1 and a.dtype.kind == "f"]
    name = _name(codes)
    if codes.dtype is ir.DataType.UINT4 and any(a.size in (15, 16) for a in tables):
        name = "nf4" if any(a.size == len(NF4.levels) for a in tables) else "fp4"
    block = shape[-1] if len(shape) > len(weight.shape) else None
    return StoredWeight(
        codes, tuple(v for v in stored if v is not codes), name, block, prod(weight.shape.numpy()), True
    )


def _name(codes: ir.Value) -> str:
    """The format of codes by their type."""
    return _NAMES.get(codes.dtype, "codes") if codes.dtype is not None else "codes"


def stored_weights(model: ir.Model) -> Iterator[tuple[ir.Node, StoredWeight]]:
    """All of them, in graph order."""
    for node in model.graph.all_nodes():
        weight = stored_weight(node)
        if weight is not None:
            yield node, weight


def coded_weights(model: ir.Model) -> list[CodedWeights]:
    """The stored weights of `model` by format and block, the most bytes first."""
    found: dict[tuple[str, int | None, bool], list[StoredWeight]] = {}
    for _, weight in stored_weights(model):
        found.setdefault((weight.format, weight.block, weight.restored), []).append(weight)
    rows = []
    for (name, block, restored), weights in found.items():
        each = {w.codes: w for w in weights}.values()
        elements, size = sum(w.elements for w in each), sum(w.bytes for w in each)
        rows.append(
            CodedWeights(
                format=name, block=block, layers=len(weights), elements=elements, bytes=size, restored=restored
            )
        )
    return sorted(rows, key=lambda r: -r.bytes)
