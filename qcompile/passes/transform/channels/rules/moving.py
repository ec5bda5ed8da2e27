"""Operators that move values: each channel goes where its values go.

Sizes, bounds and indices that the node holds as constants are written anew when channels are gone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import constant, is_constant
from qcompile.passes.prepare.dimensions import elements
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.prepare.untie import set_constant
from qcompile.passes.transform.channels.flow import Axes, Axis, Flow, Kept, Rule
from qcompile.passes.transform.channels.group import Side


def _transpose(node: ir.Node, flow: Flow) -> list[Axes | None]:
    x = flow.axes(node, 0)
    if x is None:
        return [None]
    return [tuple(x[i] for i in node.attributes.get_ints("perm", ()) or reversed(range(len(x))))]


# Concat and Split


def _concat(node: ir.Node, flow: Flow) -> list[Axes | None]:
    operands = [flow.axes(node, i) for i in range(len(node.inputs))]
    known = [axes for axes in operands if axes is not None]
    if len(known) < len(operands):
        return flow.freeze_inputs(node)
    place = node.attributes.get_int("axis", 0) % len(known[0])
    result: list[Axis] = []
    for axis, parts in enumerate(zip(*known, strict=True)):
        if axis != place:
            result.append(flow.join(*parts))
        elif any(part is None for part in parts):
            flow.freeze(*parts)
            result.append(None)
        else:
            result.append(np.concatenate([part for part in parts if part is not None]))
    return [tuple(result)]


def _split(node: ir.Node, flow: Flow) -> list[Axes | None]:
    x = flow.axes(node, 0)
    place = node.attributes.get_int("axis", 0) % len(x) if x else 0
    sizes = [v.shape[place] if v.shape is not None else None for v in node.outputs]
    parts = [size for size in sizes if isinstance(size, int)]
    if x is None or (whole := x[place]) is None or len(parts) < len(sizes):
        return flow.freeze_inputs(node)
    ends = np.cumsum(parts)
    return [(*x[:place], part, *x[place + 1 :]) for part in np.split(whole, ends[:-1])]


def _new_parts(node: ir.Node, kept: Kept, names: Names) -> None:
    """The sizes of the parts, written out: equal ones may have become unequal."""
    shapes = [v.shape for v in node.outputs if v.shape is not None]
    axis = node.attributes.get_int("axis", 0) % len(shapes[0])
    sizes = [size for shape in shapes if isinstance(size := shape[axis], int)]
    if axis not in kept.masks(node.inputs[0]):
        return
    node.attributes.pop("num_outputs", None)
    if "split" in node.attributes:
        node.attributes["split"] = ir.AttrInt64s("split", sizes)
    else:
        set_constant(node, 1, np.array(sizes, np.int64), names, "sizes")


# Slice and Gather


def _slice(node: ir.Node, flow: Flow) -> list[Axes | None]:
    x, result = flow.axes(node, 0), flow.frozen(node.outputs[0])
    cuts = _cuts(node, len(x)) if x is not None else None
    if x is None or cuts is None:
        return flow.freeze_inputs(node)
    found = list(x)
    for axis, (start, end, step) in cuts.items():
        whole = x[axis]
        if whole is not None and step == 1:
            found[axis] = whole[start:end]
        else:
            flow.freeze(whole)
            found[axis] = result[axis] if result is not None else None
    return [tuple(found)]


def _cuts(node: ir.Node, rank: int) -> dict[int, tuple[int, int, int]] | None:
    """Start, end and step along each axis that a Slice cuts; None where they are computed."""
    operands = [node.inputs[i] if i < len(node.inputs) else None for i in range(1, 5)]
    if any(v is not None and not is_constant(v) for v in operands) or None in operands[:2]:
        return None
    given = [constant(v) for v in operands]
    starts, ends, axes, steps = ([int(n) for n in a.reshape(-1)] if a is not None else [] for a in given)
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    return {a % rank: cut for a, *cut in zip(axes, starts, ends, steps, strict=True)}  # type: ignore[misc]


def _new_bounds(node: ir.Node, kept: Kept, names: Names) -> None:
    masks, rank = kept.masks(node.inputs[0]), len(node.outputs[0].shape or ())
    cuts = _cuts(node, rank)
    if cuts is None or not masks.keys() & cuts.keys():
        return
    for axis in masks.keys() & cuts.keys():
        start, end, _ = slice(*cuts[axis][:2]).indices(len(masks[axis]))
        cuts[axis] = int(masks[axis][:start].sum()), int(masks[axis][:end].sum()), 1
    for index, place in ((1, 0), (2, 1)):
        set_constant(node, index, np.array([cut[place] for cut in cuts.values()], np.int64), names)


def _gather(node: ir.Node, flow: Flow) -> list[Axes | None]:
    data, taken = flow.axes(node, 0), constant(node.inputs[1])
    if data is None or not data:
        return flow.freeze_inputs(node)
    place = node.attributes.get_int("axis", 0) % len(data)
    along, before, behind = data[place], data[:place], data[place + 1 :]
    if is_constant(node.inputs[0]):
        flow.sides |= {((node, 0), i): Side.WRITES for i in range(len(data)) if i != place}
        flow.width += [axis for axis in (*before, *behind) if axis is not None]
    if taken is None or along is None or taken.ndim > 1:
        flow.freeze(along)
        looked_up = flow.axes(node, 1)
        flow.freeze(*(looked_up or ()))
        return [(*before, *looked_up, *behind) if looked_up is not None else None]
    if taken.ndim == 0:
        flow.freeze(along[taken : int(taken) + 1 or None])
        return [(*before, *behind)]
    return [(*before, along[taken], *behind)]


def _new_numbers(node: ir.Node, kept: Kept, names: Names) -> None:
    shape, taken = node.inputs[0].shape if node.inputs[0] is not None else None, constant(node.inputs[1])
    masks = kept.masks(node.inputs[0]) or kept.masks((node, 0))
    mask = masks.get(node.attributes.get_int("axis", 0) % len(shape or (1,)))
    if mask is None or taken is None:
        return
    numbers = taken % len(mask)
    new = (np.cumsum(mask) - 1)[numbers]
    set_constant(node, 1, np.asarray(new[mask[numbers]] if new.ndim else new, taken.dtype), names)


# Reshape and its kin, Expand


def _reshape(node: ir.Node, flow: Flow) -> list[Axes | None]:
    """Runs of axes with the same elements before and after; axes of size 1 come and go."""
    x, result = flow.axes(node, 0), node.outputs[0]
    source = node.inputs[0]
    asked = elements(node.inputs[1]) if node.op_type == "Reshape" else ()
    if x is None or asked is None or source is None or source.shape is None or result.shape is None:
        return flow.freeze_inputs(node)
    found = list(flow.frozen(result) or ())
    matched = set[int]()
    for left, right in _runs(_wide(source.shape), _wide(result.shape)):
        matched.update(left)
        if len(left) == len(right) == 1:
            found[right[0]] = x[left[0]]
            continue
        cut = [axis for i in left if (axis := x[i]) is not None]
        into = [flow.fresh(len(axis)) for i in right if (axis := found[i]) is not None]
        for i, axis in zip(right, into, strict=True):
            found[i] = axis
        flow.regroup(cut, into)
    flow.freeze(*(axis for i, axis in enumerate(x) if i not in matched))
    if asked and not is_constant(node.inputs[1]):
        flow.freeze(*(axis for axis, size in zip(found, asked, strict=True) if size not in (0, -1)))
    return [tuple(found)]


_Sizes = list[tuple[int, int | str]]
"""Axes with their sizes, which may be names."""


def _wide(shape: ir.Shape) -> _Sizes:
    """The axes of more than one index; one of unknown size is like no other."""
    sizes = [(i, size if isinstance(size, int) else size.value or f"?{id(shape)}") for i, size in enumerate(shape)]
    return [(i, size) for i, size in sizes if size != 1]


def _runs(before: _Sizes, after: _Sizes) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of axes that hold the same elements, from the last axis on and then from the first."""
    found = []
    for _ in range(2):
        before, after = before[::-1], after[::-1]
        while lengths := _shortest([size for _, size in before], [size for _, size in after]):
            runs = before[: lengths[0]], after[: lengths[1]]
            found.append((sorted(i for i, _ in runs[0]), sorted(i for i, _ in runs[1])))
            before, after = before[lengths[0] :], after[lengths[1] :]
    return found


def _shortest(before: list[int | str], after: list[int | str]) -> tuple[int, int] | None:
    """How many sizes of each list, at least one, have the same product."""
    if not before or not after:
        return None
    taken = [1, 1]
    products = [before[0], after[0]]
    while products[0] != products[1]:
        first, second = products
        if isinstance(first, str) or isinstance(second, str):
            return None
        short = int(second < first)
        sizes = (before, after)[short]
        following = sizes[taken[short]] if taken[short] < len(sizes) else ""
        if isinstance(following, str):
            return None
        products[short] = (first, second)[short] * following
        taken[short] += 1
    return taken[0], taken[1]


def _expand(node: ir.Node, flow: Flow) -> list[Axes | None]:
    x, result = flow.axes(node, 0), flow.frozen(node.outputs[0])
    if x is None or result is None or not is_constant(node.inputs[1]):
        return flow.freeze_inputs(node)
    copies = tuple(flow.fresh(len(axis)) if axis is not None else None for axis in result)
    return [flow.broadcast(x, copies)]


def _new_shape(node: ir.Node, kept: Kept, names: Names) -> None:
    """The sizes that the operand names; 0, -1 and 1 follow what is given."""
    result, asked = node.outputs[0], constant(node.inputs[1])
    masks = kept.masks(result)
    if asked is None or not masks or result.shape is None:
        return
    sizes, missing = asked.copy(), len(result.shape) - len(asked)
    for axis in masks:
        if axis >= missing and sizes[axis - missing] > 1:
            sizes[axis - missing] = masks[axis].sum()
    if not np.array_equal(sizes, asked):
        set_constant(node, 1, sizes, names)


def _shape(node: ir.Node, flow: Flow) -> list[Axes | None]:
    """The sizes of a value, of which readers that take only some bind only those."""
    x = flow.axes(node, 0) or ()
    start, end, _ = slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", len(x))).indices(len(x))
    for reader, _ in node.outputs[0].uses():
        taken = constant(reader.inputs[1]) if reader.op_type == "Gather" else None
        flow.freeze(*(x[start:end] if taken is None else (x[start:end][int(i)] for i in taken.reshape(-1))))
    if node.outputs[0].is_graph_output():
        flow.freeze(*x[start:end])
    return [flow.frozen(node.outputs[0])]


MOVING = {
    "Transpose": Rule(_transpose),
    "Concat": Rule(_concat),
    "Split": Rule(_split, _new_parts),
    "Slice": Rule(_slice, _new_bounds),
    "Gather": Rule(_gather, _new_numbers),
    "Reshape": Rule(_reshape, _new_shape),
    **dict.fromkeys(("Flatten", "Squeeze", "Unsqueeze"), Rule(_reshape)),
    "Expand": Rule(_expand, _new_shape),
    "Shape": Rule(_shape),
}
