"""What became of the weights: their type, shape, bytes and values, before and after."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

import numpy as np
import onnx_ir as ir
from pydantic import BaseModel

from qcompile.compiler.diffing.flat import FlatModel
from qcompile.compiler.diffing.match import Group, Matching
from qcompile.compiler.inspection import CONVERSIONS, type_name
from qcompile.compiler.reading import stays_in_folder
from qcompile.compiler.stored_weights import StoredWeight, kernel_parameters, restores, stored_behind, stored_weight


class TensorEvent(StrEnum):
    """What happened to a stored tensor."""

    QUANTIZED = "quantized"
    RESIZED = "resized"
    RETYPED = "retyped"
    CHANGED = "values changed"
    ADDED = "added"
    REMOVED = "removed"


class TensorChange(BaseModel):
    """One stored tensor on both sides.

    `bytes_after` of a quantized tensor includes its scales and zero points. Empty strings and zero
    bytes stand for the side that lacks it.
    """

    name: str
    event: TensorEvent
    dtype_before: str = ""
    dtype_after: str = ""
    shape_before: str = ""
    shape_after: str = ""
    bytes_before: int = 0
    bytes_after: int = 0


def tensor_changes(matching: Matching) -> tuple[list[TensorChange], int]:
    """Tensors that differ, in the order of `a`, then what `b` has alone; and how many are the same.

    Scales and zero points count to the tensor they belong to. Values are compared only where type
    and shape are the same, and one tensor at a time.
    """
    a, b = dict(_stored(matching.a)), dict(_stored(matching.b))
    partners = _partners(matching, a, b)
    params_b = {v for v in b if _only_params(v)}
    params_a = {v for v in a if _only_params(v)}
    changes, same = [], 0
    for before in a:
        after = partners.get(before)
        if after is not None:
            change = _compare(before, after)
            changes += [change] if change else []
            same += change is None
        elif before not in params_a:
            changes.append(_alone(before, TensorEvent.REMOVED))
    taken = set(partners.values())
    changes += [_alone(v, TensorEvent.ADDED) for v in b if v not in taken and v not in params_b]
    return changes, same


def _stored(flat: FlatModel) -> Iterator[tuple[ir.Value, None]]:
    """Initializers of all graphs and outputs of Constant nodes, in order."""
    for graph in (flat.model.graph, *flat.model.graph.subgraphs()):
        yield from ((value, None) for value in graph.initializers.values())
    for node in flat.model.graph.all_nodes():
        if node.op_type == "Constant" and node.outputs:
            yield node.outputs[0], None


def tensor_of(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor behind a stored value; None for a Constant of numbers or strings."""
    if value.const_value is not None:
        return value.const_value
    node = value.producer()
    attribute = node.attributes.get("value") if node is not None else None
    return attribute.as_tensor() if attribute is not None and not attribute.is_ref() else None


def _partners(matching: Matching, a: dict[ir.Value, None], b: dict[ir.Value, None]) -> dict[ir.Value, ir.Value]:
    """Stored tensor of `a` -> its successor in `b`: what matched operations read, then equal names."""
    partners: dict[ir.Value, ir.Value] = {}
    taken: set[ir.Value] = set()
    for group in matching.groups:
        for before, successor in _weights(group):
            if before in a and successor in b and before not in partners and successor not in taken:
                partners[before] = successor
                taken.add(successor)
    names = {v.name: v for v in b if v not in taken}
    for before in a:
        after_value = names.get(before.name) or names.get(f"{before.name}_quantized")
        if before not in partners and after_value is not None and after_value not in taken:
            partners[before] = after_value
            taken.add(after_value)
    return partners


def _weights(group: Group) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Pairs of constants: same name first, then same number of elements in the order of the inputs."""
    old = [v for op in group.befores for v in op.constants]
    new = [v for op in group.afters for v in op.constants if not _only_params(v)]
    for before in list(old):
        named = [v for v in new if v.name in {f"{before.name}{ending}" for ending in _ENDINGS}]
        if named:
            yield before, named[0]
            old.remove(before)
            new.remove(named[0])
    for before in old:
        packed = [
            v for op in group.afters if (w := stored_weight(op.node)) and w.elements == _size(before) for v in [w.codes]
        ]
        fitting = next((v for v in new if _size(v) == _size(before) or v in packed), None)
        if fitting is not None:
            yield before, fitting
            new.remove(fitting)


_ENDINGS = ("", "_quantized", "_blocks", "_block_rows", "_nf4", "_nvfp4")
"""What lowering appends to the name of a weight for its codes."""


def _only_params(value: ir.Value) -> bool:
    """Is it read only as a scale or zero point? (By its place in an operator, or its name in a QLinear form.)"""
    uses = list(value.uses())
    return bool(uses) and all(_is_param(use.node, use.idx, value) for use in uses)


def _is_param(node: ir.Node, index: int, value: ir.Value) -> bool:
    if node.op_type in CONVERSIONS:
        return index > 0
    if kernel_parameters(node):
        return index in kernel_parameters(node)
    if restores(node):
        result = node.outputs[0]
        return stored_behind(result)[0] is not value or _only_params(result)
    return (value.name or "").endswith(("_scale", "_zero_point", "_scales_mul")) and (
        node.op_type.startswith("Q") or "Integer" in node.op_type or node.op_type in ("Mul", "DynamicQuantizeMatMul")
    )


def _compare(before: ir.Value, after: ir.Value) -> TensorChange | None:
    x, y = tensor_of(before), tensor_of(after)
    if x is None or y is None:
        return None
    old, new = _describe(before, x), _describe(after, y)
    stored = _weight_of(after)
    size_after = stored.bytes if stored is not None else y.nbytes
    if x.dtype != y.dtype:
        codes = stored is not None or y.dtype.is_integer()
        event = TensorEvent.QUANTIZED if x.dtype.is_floating_point() and codes else TensorEvent.RETYPED
        if event is TensorEvent.QUANTIZED and stored is None:
            size_after += _param_bytes(after)
    elif list(x.shape) != list(y.shape):
        event = TensorEvent.RESIZED
    elif _equal(x, y):
        return None
    else:
        event = TensorEvent.CHANGED
    return TensorChange(
        name=before.name or "",
        event=event,
        dtype_before=old[0],
        dtype_after=new[0] if stored is None else stored.format,
        shape_before=old[1],
        shape_after=new[1],
        bytes_before=x.nbytes,
        bytes_after=size_after,
    )


def _alone(value: ir.Value, event: TensorEvent) -> TensorChange:
    tensor = tensor_of(value)
    dtype, shape = _describe(value, tensor)
    size = tensor.nbytes if tensor is not None else 0
    if event is TensorEvent.ADDED:
        return TensorChange(name=value.name or "", event=event, dtype_after=dtype, shape_after=shape, bytes_after=size)
    return TensorChange(name=value.name or "", event=event, dtype_before=dtype, shape_before=shape, bytes_before=size)


def _describe(value: ir.Value, tensor: ir.TensorProtocol | None) -> tuple[str, str]:
    if tensor is None:
        return "", ""
    return type_name(tensor.dtype), " x ".join(str(d) for d in tensor.shape) or "scalar"


def _size(value: ir.Value) -> int:
    tensor = tensor_of(value)
    return tensor.size if tensor is not None else -1


def _weight_of(codes: ir.Value) -> StoredWeight | None:
    """The weight whose codes `codes` are."""
    readers = [use.node for use in codes.uses()]
    while readers:
        node = readers.pop()
        if restores(node) or node.op_type in CONVERSIONS:
            readers += [use.node for use in node.outputs[0].uses()]
        elif (found := stored_weight(node)) is not None and found.codes is codes:
            return found
    return None


def _param_bytes(codes: ir.Value) -> int:
    """Bytes of the scales and zero points of the DequantizeLinear nodes that read `codes`."""
    params = {
        v: None
        for use in codes.uses()
        if use.node.op_type in CONVERSIONS and use.idx == 0
        for v in use.node.inputs[1:]
        if v is not None
    }
    return sum(t.nbytes for v in params if (t := tensor_of(v)) is not None)


def _equal(x: ir.TensorProtocol, y: ir.TensorProtocol) -> bool:
    """Equal values; tensors that lie outside their model's folder are not read and count as equal."""
    if x.dtype == ir.DataType.STRING:
        return bool(np.array_equal(x.numpy(), y.numpy()))
    if not (stays_in_folder(x) and stays_in_folder(y)):
        return True
    a, b = x.numpy(), y.numpy()
    if a.dtype.kind == "V" or a.dtype.itemsize == 0:
        return x.tobytes() == y.tobytes()
    return bool(np.array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8)))
