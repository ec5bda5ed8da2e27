"""Operators that move values: each channel keeps its scale and takes it along."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import constant, rank
from qcompile.passes.transform.folding.moves import (
    ANY,
    Equal,
    Join,
    Layout,
    Move,
    Moves,
    Rules,
    collapsed,
    fitted,
    keep,
    lifted,
)

_UNKNOWN = "whose shapes are not known"
_AS_DATA = "not as its data"


def _source(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


# Transpose


def _transpose_read(node: ir.Node, _: int, layout: Layout) -> list[Moves]:
    return [[Join(node.outputs[0], layout.transpose(_permutation(node, layout)))]]


def _transpose_written(node: ir.Node, _: int, layout: Layout) -> list[Moves]:
    return [[Join(_source(node), layout.transpose(np.argsort(_permutation(node, layout))))]]


def _permutation(node: ir.Node, layout: Layout) -> list[int]:
    given = node.attributes.get_ints("perm", ())
    return list(given) or list(reversed(range(layout.ndim)))


# Reshape, Flatten, Squeeze, Unsqueeze


def _reshape_read(node: ir.Node, index: int, layout: Layout) -> list[Moves]:
    if index != 0:
        return keep(node, layout, _AS_DATA)
    shapes = _stand_ins(node)
    if shapes is None:
        return keep(node, layout, _UNKNOWN)
    return [[Join(node.outputs[0], _reshaped(layout, *shapes))]]


def _reshape_written(node: ir.Node, _: int, layout: Layout) -> list[Moves]:
    shapes = _stand_ins(node)
    if shapes is None:
        return keep(node, layout, _UNKNOWN)
    return [[Join(_source(node), _reshaped(layout, shapes[1], shapes[0]))]]


def _reshaped(layout: Layout, source: list[int], target: list[int]) -> Layout:
    full = np.broadcast_to(layout, source).reshape(target)
    for axis in range(full.ndim):
        first = full.take([0], axis)
        if (full == first).all():
            full = first
    return full


def _stand_ins(node: ir.Node) -> tuple[list[int], list[int]] | None:
    """Shapes of the input and the output with numbers in the place of unknown dimensions.

    Symbols of the input stand for a number that every split into known dimensions divides; at most one
    dimension of the output may be unknown besides, and follows from the number of elements.
    """
    source, target = _source(node).shape, node.outputs[0].shape
    if source is None or target is None:
        return None
    wanted: list[int | str | None] = [d if isinstance(d, int) else d.value for d in target]
    asked = constant(node.inputs[1]) if node.op_type == "Reshape" else None
    if asked is not None and not node.attributes.get_int("allowzero", 0):
        given = [d if isinstance(d, int) else d.value for d in source]
        for i, length in enumerate(int(n) for n in asked):
            wanted[i] = given[i] if length == 0 else length if length > 0 else wanted[i]
            if length < 0 and not isinstance(wanted[i], int):
                wanted[i] = None
    known_in = math.prod(d for d in source if isinstance(d, int))
    known_out = math.prod(d for d in wanted if isinstance(d, int))
    unknown = 2 * known_out // math.gcd(known_in, known_out)
    symbols = {d.value for d in source if not isinstance(d, int)} - {None}
    numbers_in = [d if isinstance(d, int) else unknown for d in source]
    numbers_out = [d if isinstance(d, int) else unknown if d in symbols else -1 for d in wanted]
    total, rest = math.prod(numbers_in), math.prod(n for n in numbers_out if n >= 0)
    if numbers_out.count(-1) > 1 or rest == 0 or total % rest:
        return None
    if -1 in numbers_out:
        numbers_out[numbers_out.index(-1)] = total // rest
    return (numbers_in, numbers_out) if math.prod(numbers_out) == total else None


# Expand


def _expand_read(node: ir.Node, index: int, layout: Layout) -> list[Moves]:
    result = lifted(layout, node.outputs[0]) if index == 0 else None
    return keep(node, layout, _UNKNOWN) if result is None else [[Join(node.outputs[0], result)]]


def _expand_written(node: ir.Node, _: int, layout: Layout) -> list[Moves]:
    fit = fitted(layout, _source(node))
    return keep(node, layout, _UNKNOWN) if fit is None else [[fit[1], Join(_source(node), fit[0])]]


# Split, Slice, Gather: parts of an axis


def _part_read(node: ir.Node, index: int, layout: Layout) -> list[Moves]:
    if index != 0:
        return keep(node, layout, _AS_DATA)
    moves: list[Move] = []
    for number, output in enumerate(node.outputs):
        parts = _parts(node, number)
        if parts is None:
            return keep(node, layout, _UNKNOWN)
        taken = layout
        for axis, positions in parts.items():
            if layout.shape[axis] > 1:
                taken = taken.take(positions, axis)
        moves.append(Join(output, _without_axis(node, taken)))
    return [moves]


def _part_written(node: ir.Node, index: int, layout: Layout) -> list[Moves]:
    """Positions that are not taken may have any scale."""
    source, parts = _source(node), _parts(node, index)
    if parts is None or source.shape is None:
        return keep(node, layout, _UNKNOWN)
    moves: list[Move] = []
    layout = _with_axis(node, layout)
    for axis, positions in parts.items():
        length = source.shape[axis]
        if layout.shape[axis] == 1 and len(positions) != 1:
            continue
        if not isinstance(length, int):
            return keep(node, layout, _UNKNOWN)
        whole = np.moveaxis(np.full((*layout.shape[:axis], length, *layout.shape[axis + 1 :]), ANY), axis, 0)
        part = np.moveaxis(layout, axis, 0)
        whole[positions] = part
        moves.append(Equal(whole[positions], part))
        layout = np.moveaxis(whole, 0, axis)
    return [[*moves, Join(source, layout)]]


def _parts(node: ir.Node, output: int) -> dict[int, list[int]] | None:
    """Axis -> positions of the input that output number `output` holds; None when they are not constants.

    An axis of unknown length that is sliced is left out: no scale varies along it.
    """
    dims = rank(_source(node))
    shape = _source(node).shape
    if dims is None or shape is None:
        return None
    match node.op_type:
        case "Split":
            axis = node.attributes.get_int("axis", 0) % dims
            sizes = [v.shape[axis] if v.shape is not None else None for v in node.outputs]
            if not all(isinstance(n, int) for n in sizes):
                return {} if not isinstance(shape[axis], int) else None
            numbers = [int(n) for n in sizes if isinstance(n, int)]
            start = sum(numbers[:output])
            return {axis: list(range(start, start + numbers[output]))}
        case "Gather":
            indices, axis = constant(node.inputs[1]), node.attributes.get_int("axis", 0) % dims
            length = shape[axis]
            if indices is None or indices.ndim > 1 or not isinstance(length, int):
                return None
            return {axis: [int(i) % length for i in indices.reshape(-1)]}
    return _sliced(node, shape)


def _sliced(node: ir.Node, shape: ir.Shape) -> dict[int, list[int]] | None:
    given = [v for v in node.inputs[1:] if v is not None]
    bounds = [constant(v) for v in given]
    if len(bounds) != len(node.inputs) - 1 or any(b is None for b in bounds):
        return None
    starts, ends, *rest = ([int(i) for i in b.reshape(-1)] for b in bounds if b is not None)
    axes = rest[0] if rest else list(range(len(starts)))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    found = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        length = shape[axis % len(shape)]
        if isinstance(length, int):
            found[axis % len(shape)] = list(range(length))[start:end:step]
    return found


def _without_axis(node: ir.Node, layout: Layout) -> Layout:
    """A Gather with a scalar index takes its axis away."""
    if node.op_type == "Gather" and rank(node.inputs[1]) == 0:
        taken: Layout = np.take(layout, 0, node.attributes.get_int("axis", 0) % layout.ndim)
        return taken
    return layout


def _with_axis(node: ir.Node, layout: Layout) -> Layout:
    if node.op_type == "Gather" and rank(node.inputs[1]) == 0:
        return np.expand_dims(layout, node.attributes.get_int("axis", 0) % (layout.ndim + 1))
    return layout


# Concat


def _concat_read(node: ir.Node, index: int, layout: Layout) -> list[Moves]:
    axis = node.attributes["axis"].as_int() % layout.ndim
    lengths = _lengths(node, axis)
    if layout.shape[axis] == 1 and (lengths is None or lengths[index] != 1):
        return [[Join(node.outputs[0], layout), *(Join(v, layout) for v in node.inputs if v is not None)]]
    if lengths is None:
        return keep(node, layout, _UNKNOWN)
    ends = [(sum(lengths[:index]), 0), (0, sum(lengths[index + 1 :]))]
    around = [(ends[0][0], ends[1][1]) if i == axis else (0, 0) for i in range(layout.ndim)]
    return [[Join(node.outputs[0], np.pad(layout, around, constant_values=ANY))]]


def _concat_written(node: ir.Node, _: int, layout: Layout) -> list[Moves]:
    axis = node.attributes["axis"].as_int() % layout.ndim
    if layout.shape[axis] == 1:
        return [[Join(v, layout) for v in node.inputs if v is not None]]
    lengths = _lengths(node, axis)
    if lengths is None:
        return keep(node, layout, _UNKNOWN)
    parts = np.split(layout, np.cumsum(lengths)[:-1], axis)
    return [[Join(v, part) for v, part in zip(node.inputs, parts, strict=True) if v is not None]]


def _lengths(node: ir.Node, axis: int) -> list[int] | None:
    lengths = [v.shape[axis] if v is not None and v.shape is not None else None for v in node.inputs]
    return [int(n) for n in lengths if isinstance(n, int)] if all(isinstance(n, int) for n in lengths) else None


# Resize, Pad: images whose channels stay apart


def _spatial_read(node: ir.Node, index: int, layout: Layout) -> list[Moves]:
    if index != 0 or not _is_spatial(node):
        return keep(node, layout, _AS_DATA if index else "which does more than move pixels")
    flat, equal = collapsed(layout, list(range(2, layout.ndim)))
    return [[equal, Join(node.outputs[0], flat)]]


def _spatial_written(node: ir.Node, _: int, layout: Layout) -> list[Moves]:
    if not _is_spatial(node):
        return keep(node, layout, "which does more than move pixels")
    flat, equal = collapsed(layout, list(range(2, layout.ndim)))
    return [[equal, Join(_source(node), flat)]]


def _is_spatial(node: ir.Node) -> bool:
    """It leaves batch and channels as they are, and adds nothing but zeros."""
    source, target = _source(node).shape, node.outputs[0].shape
    if source is None or target is None or len(source) < 3 or source[1] != target[1]:
        return False
    if node.op_type == "Resize":
        crops = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
        return not crops
    filled = node.inputs[2] if len(node.inputs) > 2 else None
    value = constant(filled)
    zero = filled is None or (value is not None and not value.any())
    return zero or node.attributes.get_string("mode", "constant") != "constant"


_RESHAPE = Rules(_reshape_read, _reshape_written)
_PART = Rules(_part_read, _part_written)
_SPATIAL = Rules(_spatial_read, _spatial_written)

MOVING: dict[str, Rules] = {
    "Transpose": Rules(_transpose_read, _transpose_written),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _RESHAPE),
    "Expand": Rules(_expand_read, _expand_written),
    **dict.fromkeys(("Split", "Slice", "Gather"), _PART),
    "Concat": Rules(_concat_read, _concat_written),
    **dict.fromkeys(("Resize", "Pad"), _SPATIAL),
}
