"""Weights that an artifact stores as codes, read as numbers and written back as codes of the same kind.

    W = dequantize(codes, params);   codes', params' = round to nearest of W' on the spec that the codes tell

The spec is read off the operators (DequantizeLinear before a float operator, products of integers, MatMulNBits,
MatMulBnb4, NF4 that is multiplied when the model loads) and off how their scales are stored: format, axis or block,
symmetry, float32 or fp16 scales, or those of double quantization. An int32 bias in front of the operator is of scale
s_x * s_w, so it is rounded anew too.
Source: the operator specifications of ONNX and of com.microsoft.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.formats import FORMATS, NF4, NumericFormat, Scales
from qcompile.compiler.graph import is_constant, nodes
from qcompile.compiler.lora.places import Place, places
from qcompile.compiler.params import QuantParams, dequantize
from qcompile.compiler.plan import QuantizedWeight
from qcompile.compiler.specs import Granularity, PerBlock, PerChannel, PerTensor, QuantSpec
from qcompile.compiler.stored_weights import restores, stored_behind
from qcompile.compiler.weight_params import weight_codes, weight_params
from qcompile.passes.lower.coded_scales import StoredScales, numbers_of, write_numbers
from qcompile.passes.lower.packing import high_half_first, packed_blocks, packed_codes, unpacked_codes

Floats = npt.NDArray[np.float32]

_OPERATORS = ("Conv", "Gather", "Gemm", "MatMul")
_INTEGER_PRODUCTS = {"MatMulIntegerToFloat": (1, 3, 5), "DynamicQuantizeMatMul": (1, 2, 3)}
"""Where they read codes, scale and zero point of the weight."""

_NF4 = 1
_PLAIN = {f.dtype: f for f in FORMATS.values() if f.block is None and not f.levels}


class Coded(Protocol):
    """One stored weight."""

    @property
    def codes(self) -> ir.Value:
        """The stored tensor."""

    @property
    def weight(self) -> QuantizedWeight:
        """Its codes and parameters."""

    def write(self, weight: QuantizedWeight) -> None:
        """Store others, of the same spec and shape."""


@dataclass(frozen=True, eq=False)
class CodedPlace(Place):
    """A layer whose weight is stored as codes."""

    coded: Coded

    @property
    def weight(self) -> ir.Value:
        return self.coded.codes

    @property
    def inputs_first(self) -> bool:
        return isinstance(self.coded, _Plain) and super().inputs_first

    @cached_property
    def shape(self) -> tuple[int, ...]:
        shape = self.coded.weight.codes.shape
        return shape[::-1] if self.inputs_first else shape

    def numbers(self) -> Floats:
        """The weight in `shape`."""
        stored = self.coded.weight
        found: Floats = np.asarray(dequantize(stored.codes, stored.params), np.float32)
        return found.T if self.inputs_first else found

    def write(self, numbers: Floats) -> Floats:
        """Store `numbers`, and what the codes make of them."""
        layout = np.ascontiguousarray(numbers.T if self.inputs_first else numbers)
        spec = self.coded.weight.params.spec
        params = weight_params(layout, spec)
        self.coded.write(QuantizedWeight(params, weight_codes(layout, params)))
        return self.numbers()


def writable_places(model: ir.Model) -> list[Place]:
    """The layers with float weights, and those with stored weights that can be written anew, in graph order."""
    found: dict[ir.Node, Place] = {place.node: place for place in places(model)}
    for node in nodes(model):
        coded = _coded(node)
        if coded is not None:
            found[node] = CodedPlace(node, coded)
    return [found[node] for node in nodes(model) if node in found]


def _coded(node: ir.Node) -> Coded | None:
    if node.domain == "com.microsoft" and node.op_type in _INTEGER_PRODUCTS:
        return _plain(node, node, _INTEGER_PRODUCTS[node.op_type])
    if node.domain == "com.microsoft" and node.op_type in ("MatMulNBits", "MatMulBnb4"):
        scales = StoredScales.of(_input(node, 2))
        if scales is None or not is_constant(node.inputs[1]):
            return None
        if node.op_type == "MatMulBnb4":
            return _Bnb4(node, scales) if node.attributes.get_int("quant_type", 0) == _NF4 else None
        zero = node.inputs[3] if len(node.inputs) > 3 else None
        return _Blocks(node, scales) if zero is None or _is_packed(zero) else None
    if node.domain != "" or node.op_type not in _OPERATORS:
        return None
    weight = node.inputs[0 if node.op_type == "Gather" else 1]
    conversion = weight.producer() if weight is not None else None
    if weight is None or conversion is None:
        return None
    if conversion.op_type == "DequantizeLinear":
        return _plain(node, conversion, (0, 1, 2))
    return _LoadTime.of(weight) if node.op_type != "Gather" and restores(conversion) else None


def _plain(node: ir.Node, holder: ir.Node, at: tuple[int, int, int]) -> _Plain | None:
    """None where a part of it is computed."""
    given = [v for position in at if position < len(holder.inputs) and (v := holder.inputs[position]) is not None]
    return _Plain(node, holder, at) if all(map(is_constant, given)) and given[0].dtype in _PLAIN else None


@dataclass(frozen=True, eq=False)
class _Plain:
    """Codes in the layout of the weight.

    Attributes:
        holder: the node that reads them: a DequantizeLinear, or the operator itself.
        at: where it reads codes, scale and zero point.
    """

    node: ir.Node
    holder: ir.Node
    at: tuple[int, int, int]

    @property
    def codes(self) -> ir.Value:
        return _input(self.holder, self.at[0])

    @property
    def weight(self) -> QuantizedWeight:
        codes, scale = (_array(self.holder, position) for position in self.at[:2])
        zero = _array(self.holder, self.at[2]).astype(np.int32) if self.has_zero else np.zeros((), np.int32)
        zero = np.broadcast_to(zero, scale.shape)
        assert self.codes.dtype is not None
        kind = Scales.FLOAT16 if scale.dtype == np.float16 else Scales.FLOAT32
        spec = _spec(_PLAIN[self.codes.dtype], self.grain(scale), codes, zero, kind)
        return QuantizedWeight(QuantParams(spec, scale.astype(np.float32), zero), codes)

    @property
    def has_zero(self) -> bool:
        return len(self.holder.inputs) > self.at[2] and self.holder.inputs[self.at[2]] is not None

    def grain(self, scale: npt.NDArray[Any]) -> Granularity:
        size, axis = _integer(self.holder, "block_size"), self.holder.attributes.get_int("axis", 1)
        if size:
            return PerBlock(axis, size)
        return PerChannel(axis) if scale.ndim and scale.size > 1 else PerTensor()

    def write(self, weight: QuantizedWeight) -> None:
        codes, scale, zero = self.at
        old: Floats = _array(self.holder, scale).astype(np.float32)
        ratio = weight.params.scale / old
        _set(self.holder, codes, weight.codes)
        _set(self.holder, scale, weight.params.scale)
        if self.has_zero and not weight.params.spec.symmetric:
            _set(self.holder, zero, weight.params.zero_point)
        _rescale_bias(self.node, ratio)


@dataclass(frozen=True, eq=False)
class _BlockProduct:
    """A product of com.microsoft that reads codes in blocks."""

    node: ir.Node
    scales: StoredScales

    @property
    def codes(self) -> ir.Value:
        return _input(self.node, 1)


class _Blocks(_BlockProduct):
    """MatMulNBits."""

    @property
    def weight(self) -> QuantizedWeight:
        bits, size, rows, depth = (_integer(self.node, name) for name in ("bits", "block_size", "N", "K"))
        middle = 2 ** (bits - 1)
        scale = self.scales.read().reshape(rows, -1)
        codes = unpacked_codes(_array(self.node, 1), bits).reshape(rows, -1)[:, :depth].astype(np.int16)
        if len(self.node.inputs) > 3 and self.node.inputs[3] is not None:
            zero = unpacked_codes(_array(self.node, 3), bits).reshape(rows, -1)[:, : scale.shape[1]].astype(np.int32)
            spec = QuantSpec(FORMATS[f"uint{bits}"], PerBlock(1, size), scales=self.scales.kind)
        else:
            codes, zero = codes - middle, np.zeros(scale.shape, np.int32)
            spec = _spec(FORMATS[f"int{bits}"], PerBlock(1, size), codes, zero, self.scales.kind)
        return QuantizedWeight(QuantParams(spec, scale, zero), codes)

    def write(self, weight: QuantizedWeight) -> None:
        _set(self.node, 1, packed_blocks(weight).codes)
        self.scales.write(weight.params)
        if len(self.node.inputs) > 3 and self.node.inputs[3] is not None:
            packed = packed_codes(weight.params.zero_point, _integer(self.node, "bits"))
            _set(self.node, 3, packed.reshape(_array(self.node, 3).shape))


class _Bnb4(_BlockProduct):
    """MatMulBnb4 with NF4 codes, two in a byte, the first in the high half."""

    @property
    def weight(self) -> QuantizedWeight:
        size, rows, depth = (_integer(self.node, name) for name in ("block_size", "N", "K"))
        packed = _array(self.node, 1).reshape(-1)
        codes = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)[: rows * depth].reshape(rows, depth)
        scale = self.scales.read().reshape(rows, -1)
        spec = QuantSpec(NF4, PerBlock(1, size), symmetric=True, scales=self.scales.kind)
        return QuantizedWeight(QuantParams(spec, scale, np.zeros(scale.shape, np.int32)), codes)

    def write(self, weight: QuantizedWeight) -> None:
        _set(self.node, 1, high_half_first(weight.codes).reshape(_array(self.node, 1).shape))
        self.scales.write(weight.params)


@dataclass(frozen=True, eq=False)
class _LoadTime:
    """NF4 codes [N, K / B, B] that nodes on constants turn into numbers when the model is loaded."""

    codes: ir.Value
    depth: int
    scales: StoredScales

    @classmethod
    def of(cls, weight: ir.Value) -> _LoadTime | None:
        product = weight.producer()
        while product is not None and product.op_type in ("Transpose", "Reshape", "Slice"):
            product = _input(product, 0).producer()
        if product is None or product.op_type != "Mul" or weight.shape is None:
            return None
        behind = [v for v in stored_behind(product.inputs[0]) if v.dtype is not ir.DataType.INT64]
        codes = next((v for v in behind if v.dtype is ir.DataType.UINT4), None)
        scales = StoredScales.of(_input(product, 1))
        nf4 = len(behind) == 2 and any(v.shape == ir.Shape([len(NF4.levels)]) for v in behind)
        if codes is None or codes.shape is None or scales is None or not nf4 or len(codes.shape) != 3:
            return None
        rows = int(codes.shape.numpy()[0])
        return cls(codes, prod(weight.shape.numpy()) // rows, scales)

    @property
    def weight(self) -> QuantizedWeight:
        codes = numbers_of(self.codes)
        rows, _, size = codes.shape
        scale = self.scales.read().reshape(rows, -1)
        spec = QuantSpec(NF4, PerBlock(1, size), symmetric=True, scales=self.scales.kind)
        params = QuantParams(spec, scale, np.zeros(scale.shape, np.int32))
        return QuantizedWeight(params, codes.reshape(rows, -1)[:, : self.depth])

    def write(self, weight: QuantizedWeight) -> None:
        assert self.codes.shape is not None
        rows, blocks, size = self.codes.shape.numpy()
        filled = np.zeros((rows, blocks * size), np.uint8)
        filled[:, : self.depth] = weight.codes
        write_numbers(self.codes, filled)
        self.scales.write(weight.params)


def _spec(
    fmt: NumericFormat, grain: Granularity, codes: npt.NDArray[Any], zero: npt.NDArray[np.int32], kind: Scales
) -> QuantSpec:
    """What codes were made for; symmetric ones use the lowest of them where their range is whole."""
    middle = 0 if fmt.is_signed else 2 ** (fmt.bits - 1)
    symmetric = bool((zero == middle).all())
    full = symmetric and fmt.is_signed and fmt.is_integer and bool((codes == fmt.low).any())
    return QuantSpec(fmt, grain, symmetric=symmetric, full_range=full, scales=kind)


def _rescale_bias(node: ir.Node, ratio: Floats) -> None:
    """Round an int32 bias anew, whose scale follows that of the weight."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    conversion = bias.producer() if bias is not None else None
    if conversion is None or conversion.op_type != "DequantizeLinear":
        return
    codes, scale = _array(conversion, 0), _array(conversion, 1)
    new = (scale * ratio).astype(np.float32)
    most = np.iinfo(np.int32).max
    _set(conversion, 0, np.clip(np.rint(codes * (scale / new).astype(np.float64)), -most, most))
    _set(conversion, 1, new)


def _is_packed(value: ir.Value) -> bool:
    return is_constant(value) and value.dtype is ir.DataType.UINT8


def _input(node: ir.Node, position: int) -> ir.Value:
    value = node.inputs[position]
    assert value is not None
    return value


def _array(node: ir.Node, position: int) -> npt.NDArray[Any]:
    return numbers_of(_input(node, position))


def _integer(node: ir.Node, name: str) -> int:
    return int(node.attributes.get_int(name, 0))


def _set(node: ir.Node, position: int, array: npt.NDArray[Any]) -> None:
    write_numbers(_input(node, position), array)
