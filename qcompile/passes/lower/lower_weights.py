"""Weights stored as codes for operators that have no kernel on them: the file shrinks, the arithmetic stays float.

    W = s (W_q - z)        integers and 8-bit floating-point numbers
    W = s t[W_q]           codes of a table t: NF4; FP4, whose numbers the runtime cannot convert

W_q: codes in the smallest type of ONNX that holds them; FP6 numbers are FP8 numbers too, so they are stored as those.
s and z have one value for each block of the last axis; W is transposed where the blocks run along another. The
runtime multiplies once, when it loads the model: less on disk, not less in memory, and no faster.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.codes import Codes
from qcompile.compiler.context import CompileContext
from qcompile.compiler.formats import (
    FP8_E4M3,
    INT2,
    INT4,
    INT8,
    MXFP6_E2M3,
    MXFP6_E3M2,
    UINT2,
    UINT4,
    UINT8,
    NumericFormat,
)
from qcompile.compiler.graph import opset
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import Unit
from qcompile.compiler.reporting.wording import count
from qcompile.compiler.specs import PerBlock, PerChannel
from qcompile.compiler.targets.table import Lowering
from qcompile.compiler.units import planned_as
from qcompile.passes.lower.load_time import LoadTime
from qcompile.passes.lower.packing import blocks_last
from qcompile.passes.lower.stored_scales import stored_scale

Array = npt.NDArray[Any]

_WIDER = {
    INT2: INT4, INT4: INT8, UINT2: UINT4, UINT4: UINT8, MXFP6_E2M3: FP8_E4M3, MXFP6_E3M2: FP8_E4M3,
}  # fmt: skip


class LowerWeights(Pass):
    """Write the weights of units that compute in float as codes times scale."""

    name: ClassVar[str] = "lower-weights"
    phase: ClassVar[Phase] = Phase.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        codes = Codes.of(model, context, self.name)
        chosen = planned_as(Lowering.EMULATED, model, context)
        for node, unit, row in chosen:
            for position, name in ((row.weight, unit.weight), (row.state_weight, unit.state_weight)):
                if position is not None and name is not None:
                    weight = _Weight(node, replace(unit, weight=name), codes, opset(model))
                    node.replace_input_with(position, weight.restored())
        formats = Counter(u.weight_spec.format.name for _, u, _ in chosen if u.weight_spec is not None)
        for name, layers in formats.items():
            context.notice(
                f"{name} weights of {count(layers, 'layer')} are smaller on disk, not faster: {context.target.name} "
                "has no kernel that reads them, so they are float once the model is loaded"
            )
        return bool(chosen)


class _Weight:
    """One weight on its way into the file.

    Attributes:
        blocked: the codes are stored as [..., blocks, B]; otherwise they keep their shape.
    """

    def __init__(self, node: ir.Node, unit: Unit, codes: Codes, version: int) -> None:
        self.weight, self.name = codes.context.plan.weights[str(unit.weight), unit.node], codes.weight_name(unit)
        self.params, self.codes, self.version = self.weight.params, codes, version
        self.writer = LoadTime(codes, node)
        grain = self.params.spec.granularity
        self.blocked = isinstance(grain, PerBlock) and grain.size < self.weight.codes.shape[grain.axis]

    def restored(self) -> ir.Value:
        """The weight as the runtime computes it when it loads the model."""
        return self.writer.once(f"{self.name}_restored", self.multiplied)

    def multiplied(self) -> ir.Value:
        params, name = self.params, self.name
        stored = self.stored(self.weight.codes)
        made = self.numbers(stored)
        if params.zero_point.any():
            made = self.writer.add("Sub", [made, self.zero_points()], f"{name}_shifted", stored.shape)
        scale = stored_scale(self.codes, self.writer.node, f"{name}_scale", params, self.factors(params.scale))
        product = self.writer.add("Mul", [made, scale], f"{name}_restored", stored.shape)
        return self.unblocked(product) if self.blocked else product

    def stored(self, values: Array) -> Array:
        """Codes as they are stored; short last blocks are filled up."""
        grain = self.params.spec.granularity
        if not self.blocked or not isinstance(grain, PerBlock):
            return values
        rows = blocks_last(values, self.params)
        count = -(-rows.shape[-1] // grain.size)
        filled = np.zeros((*rows.shape[:-1], count * grain.size), rows.dtype)
        filled[..., : rows.shape[-1]] = rows
        return filled.reshape(*rows.shape[:-1], count, grain.size)

    def factors(self, values: Array) -> Array:
        """Scales or zero points in a shape that broadcasts against the stored codes."""
        grain = self.params.spec.granularity
        if self.blocked:
            return blocks_last(values, self.params)[..., None]
        if isinstance(grain, PerChannel):
            return values.reshape([-1 if i == grain.axis else 1 for i in range(self.weight.codes.ndim)])
        return values

    def numbers(self, stored: Array) -> ir.Value:
        """The values of codes at scale 1."""
        fmt, name, writer = self.params.spec.format, f"{self.name}_quantized", self.writer
        levels = _levels(fmt)
        if levels is None:
            kept = _kept_as(fmt, self.version)
            constant = self.codes.constant(writer.graph, name, stored.astype(kept.dtype.numpy()), kept.dtype)
            return writer.cast(constant, f"{self.name}_codes")
        index = stored if fmt.levels else np.searchsorted(levels, stored.astype(np.float32))
        constant = self.codes.constant(writer.graph, name, index.astype(UINT4.dtype.numpy()), UINT4.dtype)
        table = self.codes.constant(writer.graph, f"{fmt.name}_levels", levels)
        place = writer.cast(constant, f"{self.name}_index", ir.DataType.INT32)
        return writer.add("Gather", [table, place], f"{self.name}_codes", stored.shape)

    def zero_points(self) -> ir.Value:
        zero, name = self.factors(self.params.zero_point), f"{self.name}_zero_point"
        if zero.dtype.kind == "f":
            return self.codes.constant(self.writer.graph, name, zero)
        kept = _kept_as(self.params.spec.format, self.version)
        constant = self.codes.constant(self.writer.graph, name, zero.astype(kept.dtype.numpy()), kept.dtype)
        return self.writer.cast(constant, f"{name}_float")

    def unblocked(self, value: ir.Value) -> ir.Value:
        """Blocks put together again, in the shape of the weight."""
        grain, shape, name = self.params.spec.granularity, self.weight.codes.shape, f"{self.name}_restored"
        assert isinstance(grain, PerBlock)
        assert value.shape is not None
        *outer, count, size = value.shape.numpy()
        length, last = shape[grain.axis], len(shape) - 1
        value = self.writer.reshape(value, name, [*outer, count * size])
        if count * size != length:
            value = self.writer.cut(value, name, last, length)
        return value if grain.axis == last else self.writer.moved(value, name, grain.axis)


def _kept_as(fmt: NumericFormat, version: int) -> NumericFormat:
    """The smallest type that holds the codes of `fmt` in opset `version`."""
    while fmt.opset > version and fmt in _WIDER:
        fmt = _WIDER[fmt]
    return fmt


def _levels(fmt: NumericFormat) -> npt.NDArray[np.float32] | None:
    """The table of a format whose codes the runtime cannot convert to float."""
    if fmt.levels:
        return np.asarray(fmt.levels, np.float32)
    if fmt.dtype is not ir.DataType.FLOAT4E2M1:
        return None
    return np.unique(np.arange(16, dtype=np.uint8).view(fmt.dtype.numpy()).astype(np.float32))
