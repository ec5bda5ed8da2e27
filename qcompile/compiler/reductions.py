"""The nodes that reduce one tensor to its statistics, where the tensor lies.

range, channels   ReduceMin, ReduceMax, ReduceSum, Size
histogram         code = Floor(x * 2^-e) with 2^-e from the tensor's own largest |x|; codes are counted in
                  the graph on a GPU, so that they stay there, and by the caller on the CPU
mask              Compress keeps the positions that count, before anything else happens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.graph import add_initializer
from qcompile.compiler.histogram import BINS, HALF, HIGHEST, HISTOGRAM, LOWEST
from qcompile.compiler.mask import Mask
from qcompile.compiler.statistics import Statistic

_NODES = "statistics"

_EXPONENTS = np.arange(LOWEST + 1, HIGHEST + 1)
_POWERS = np.ldexp(np.float32(HALF / 2), _EXPONENTS)  # the smallest largest |x| that needs each exponent
_SCALES = np.ldexp(np.float32(1), -_EXPONENTS)
_FINEST = np.ldexp(np.float32(1), [-LOWEST])


@dataclass(frozen=True, eq=False)
class Part:
    """One output of a statistic of a tensor.

    Attributes:
        nothing: what it says of no elements.
        merge: the ONNX operator that merges two of them, empty when none can.
    """

    name: str
    value: ir.Value
    nothing: npt.NDArray[Any]
    merge: str = ""

    @property
    def is_codes(self) -> bool:
        """Codes or their counts, an output of its own; everything else is joined into one."""
        return self.nothing.dtype != np.float32


class Reductions:
    """Appends reductions to the graphs of one model.

    Args:
        version: opset of the model.
        on_device: count the codes of histograms in the graph.
    """

    def __init__(self, version: int, mask: Mask | None, on_device: bool) -> None:
        self.version, self.mask, self.on_device = version, mask, on_device
        self.made = 0

    def parts(self, graph: ir.Graph, value: ir.Value, statistic: Statistic) -> list[Part] | None:
        """One statistic of one tensor; None when the number of its channels is unknown."""
        channels, axes = _size(value, statistic.axes), None
        if channels is None:
            return None
        source = value
        if value.dtype is not None and value.dtype != ir.DataType.FLOAT:
            source = self.append(graph, "Cast", [value], to=int(ir.DataType.FLOAT))
        ways = self.mask.places(value) if self.mask else None
        if ways is not None:
            source = self.kept(graph, source, ways, value, statistic.axes)
            axes = [0] if statistic.axes else None
        elif statistic.axes:
            source, axes = self.others(graph, source, value, statistic.axes)
        if statistic is HISTOGRAM:
            return self.codes(graph, source)
        found = []
        for component in statistic.components:
            width = component.width(channels)
            made = self.reduced(graph, component.observe, source, axes)
            if width > 1 and ways is None and len(statistic.axes) > 1:
                made = self.append(graph, "Reshape", [made, _integers(graph, [-1])])
            found.append(Part(component.name, made, np.full(width, component.identity, np.float32), component.merge))
        return found

    def others(
        self, graph: ir.Graph, source: ir.Value, value: ir.Value, axes: Sequence[int]
    ) -> tuple[ir.Value, list[int]]:
        """`source` and the axes other than `axes`; the channels of a vector are those of a matrix with one row."""
        assert value.shape is not None
        rank = len(value.shape)
        if rank == 1:
            return self.append(graph, "Flatten", [source], axis=0), [0]
        return source, [i for i in range(rank) if i not in {axis % rank for axis in axes}]

    def kept(
        self, graph: ir.Graph, source: ir.Value, ways: list[tuple[int, ...]], value: ir.Value, channels: Sequence[int]
    ) -> ir.Value:
        """The rows of `source` whose positions count, channels (if any) last."""
        assert value.shape is not None
        rank = len(value.shape)
        masked = sorted({axis for way in ways for axis in way})
        last = [channel % rank for channel in channels if channel % rank not in masked]
        order = [*masked, *(i for i in range(rank) if i not in (*masked, *last)), *last]
        if order != sorted(order):
            source = self.append(graph, "Transpose", [source], perm=order)
        rows = self.append(graph, "Flatten", [source], axis=len(masked))
        kept = self.append(graph, "Compress", [rows, self.positions(graph, value, ways, masked)], axis=0)
        if not channels:
            return kept
        return self.append(graph, "Reshape", [kept, _integers(graph, [-1, _size(value, channels) or 1])])

    def positions(self, graph: ir.Graph, value: ir.Value, ways: list[tuple[int, ...]], masked: list[int]) -> ir.Value:
        """The mask over the axes `masked` of `value`, flat: a position counts when it does in each of the `ways`.

        The first Reshape fails where an axis has the mask's name but not its size.
        """
        assert self.mask is not None
        mask = self.append(graph, "Cast", [self.mask.value], to=int(ir.DataType.BOOL))
        ones = [i for i, name in enumerate(self.mask.dimensions) if name is None]
        if ones:
            mask = self.append(graph, "Squeeze", [mask, _integers(graph, ones)])
        together: ir.Value | None = None
        for way in ways:
            one, order = mask, sorted(range(len(way)), key=way.__getitem__)
            if order != sorted(order):
                one = self.append(graph, "Transpose", [one], perm=order)
            missing = [i for i, axis in enumerate(masked) if axis not in way]
            if missing:
                one = self.append(graph, "Unsqueeze", [one, _integers(graph, missing)])
            together = one if together is None else self.append(graph, "And", [together, one])
        assert together is not None
        sizes = self.append(graph, "Gather", [self.append(graph, "Shape", [value]), _integers(graph, masked)], axis=0)
        together = self.append(graph, "Reshape", [together, sizes])
        return self.append(graph, "Reshape", [together, _integers(graph, [-1])])

    def reduced(self, graph: ir.Graph, op_type: str, value: ir.Value, axes: list[int] | None) -> ir.Value:
        """`value` reduced over `axes`, left out: over all of them; always a vector."""
        if op_type == "Size":
            count = self.append(graph, "Cast", [self.append(graph, "Size", [value])], to=int(ir.DataType.FLOAT))
            return self.append(graph, "Reshape", [count, _integers(graph, [1])])
        if axes is None:
            made = self.append(graph, op_type, [value], keepdims=0)
            return self.append(graph, "Reshape", [made, _integers(graph, [1])])
        if op_type == "ReduceL1":  # seven times as fast on the CPU as a ReduceL1 over some axes
            return self.reduced(graph, "ReduceSum", self.append(graph, "Abs", [value]), axes)
        if op_type == "ReduceSum" or self.version >= 18:
            return self.append(graph, op_type, [value, _integers(graph, axes)], keepdims=0)
        return self.append(graph, op_type, [value], axes=axes, keepdims=0)

    def codes(self, graph: ir.Graph, value: ir.Value) -> list[Part]:
        """The scale 2^-e of a tensor, and the codes Floor(x * 2^-e), or how often each of them occurs."""
        bounds = [
            self.append(graph, "Abs", [self.reduced(graph, op, value, None)]) for op in ("ReduceMin", "ReduceMax")
        ]
        largest = self.append(graph, "Max", bounds)
        needed = self.append(graph, "LessOrEqual", [_constant(graph, "powers", _POWERS), largest])
        each = [_constant(graph, "scales", _SCALES), _constant(graph, "finest", _FINEST)]
        scale = self.reduced(graph, "ReduceMin", self.append(graph, "Where", [needed, *each]), None)
        bins = self.append(graph, "Floor", [self.append(graph, "Mul", [value, scale])])
        limits = [_constant(graph, "lowest", np.float32(-HALF)), _constant(graph, "highest", np.float32(HALF - 1))]
        bins = self.append(graph, "Clip", [bins, *limits])
        kind, nothing = (ir.DataType.INT32, np.zeros(BINS, np.int32))
        if not self.on_device:
            kind, nothing = (ir.DataType.INT16, np.empty(0, np.int16))
        codes = self.append(
            graph, "Reshape", [self.append(graph, "Cast", [bins], to=int(kind)), _integers(graph, [-1])]
        )
        if self.on_device:
            at = self.append(graph, "Add", [codes, _constant(graph, "half", np.array([HALF], np.int32))])
            shape = self.append(graph, "Shape", [at])
            ones = self.append(graph, "Expand", [_constant(graph, "one", np.array([1], np.int32)), shape])
            codes = self.append(
                graph, "ScatterElements", [_constant(graph, "zeros", nothing), at, ones], reduction="add"
            )
        return [Part("scale", scale, _FINEST), Part("codes", codes, nothing)]

    def append(
        self, graph: ir.Graph, op_type: str, inputs: Sequence[ir.Value], **attributes: int | str | list[int]
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes)
        graph.append(node)
        self.made += 1
        node.outputs[0].name = f"{_NODES}.{self.made}"
        return node.outputs[0]


def _size(value: ir.Value, axes: Sequence[int]) -> int | None:
    """The product of the sizes of `axes`; None where `value` lacks one of them or its size is not known."""
    product = 1
    for axis in axes:
        size = value.shape[axis] if value.shape is not None and -len(value.shape) <= axis < len(value.shape) else None
        if not isinstance(size, int):
            return None
        product *= size
    return product


def _integers(graph: ir.Graph, numbers: Sequence[int | ir.SymbolicDim]) -> ir.Value:
    return _constant(graph, "integers." + ".".join(map(str, numbers)), np.array(numbers, np.int64))


def _constant(graph: ir.Graph, name: str, array: npt.NDArray[Any] | np.generic) -> ir.Value:
    """A constant of the statistics, once for each graph."""
    known = graph.initializers.get(f"{_NODES}.{name}")
    return known if known is not None else add_initializer(graph, f"{_NODES}.{name}", np.asarray(array))
