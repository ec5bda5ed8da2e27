"""Shape arithmetic with symbols: what is known of an integer vector whose elements are dimensions.

`Shape -> Gather -> Unsqueeze -> Concat -> Reshape` is how exporters write `x.reshape(b, -1, 12, 32)`.
Element by element such vectors are known even where the batch is not.
"""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.graph import constant

Elements = tuple[int | str | None, ...]
"""One entry for each element: a number, the name of a dimension, or None for unknown."""


def elements(value: ir.Value | None, depth: int = 32) -> Elements | None:
    """The elements of an integer scalar (one entry) or vector; None when nothing is known of them."""
    if value is None or depth == 0:
        return None
    array = constant(value)
    if array is not None:
        small = array.dtype.kind == "i" and array.ndim <= 1 and array.size <= 64
        return tuple(int(x) for x in array.reshape(-1)) if small else None
    node = value.producer()
    if node is None or node.domain != "" or value.shape is None or len(value.shape) > 1:
        return None
    match node.op_type:
        case "Shape":
            return _of_shape(node)
        case "Unsqueeze" | "Squeeze" | "Identity" | "Reshape":
            return elements(node.inputs[0], depth - 1)
        case "Cast" if node.attributes["to"].as_int() in (ir.DataType.INT32, ir.DataType.INT64):
            source = node.inputs[0]
            integer = source is not None and source.dtype in (ir.DataType.INT32, ir.DataType.INT64)
            return elements(source, depth - 1) if integer else None
        case "Concat":
            parts = [elements(v, depth - 1) for v in node.inputs]
            known = [p for p in parts if p is not None]
            return tuple(e for p in known for e in p) if len(known) == len(parts) else None
        case "Gather":
            return _of_gather(node, depth)
        case "Slice":
            return _of_slice(node, depth)
        case "Where":
            return _of_choice(node, depth)
    return None


def dimension(size: int | ir.SymbolicDim) -> int | str | None:
    """A dimension of a shape as an element."""
    return size if isinstance(size, int) else size.value


def _of_shape(node: ir.Node) -> Elements | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(source.shape))
    return tuple(dimension(d) for d in source.shape)[start:end]


def _of_gather(node: ir.Node, depth: int) -> Elements | None:
    source, index = elements(node.inputs[0], depth - 1), constant(node.inputs[1])
    if source is None or index is None or node.inputs[0] is None or node.inputs[0].shape is None:
        return None
    if len(node.inputs[0].shape) != 1 or index.ndim > 1:
        return None
    wanted = [int(i) for i in index.reshape(-1)]
    return tuple(source[i] for i in wanted) if all(-len(source) <= i < len(source) for i in wanted) else None


def _of_slice(node: ir.Node, depth: int) -> Elements | None:
    source = elements(node.inputs[0], depth - 1)
    bounds = [constant(v) for v in node.inputs[1:]]
    if source is None or len(bounds) < 2 or any(b is None or b.size != 1 for b in bounds):
        return None
    start, end = (int(b.item()) for b in bounds[:2] if b is not None)
    step = int(bounds[3].item()) if len(bounds) > 3 and bounds[3] is not None else 1
    return source[start:end:step] if step > 0 else None


def _of_choice(node: ir.Node, depth: int) -> Elements | None:
    """`Where (Equal (a, b), c, d)`: exporters ask so which sizes of an Expand were given as -1."""
    asked = node.inputs[0].producer() if node.inputs[0] is not None else None
    if asked is None or asked.op_type != "Equal" or asked.domain != "":
        return None
    parts = [elements(v, depth - 1) for v in (*asked.inputs, *node.inputs[1:])]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or len({len(part) for part in known}) > 1:
        return None
    return tuple(_either(*four) for four in zip(*known, strict=True))


def _either(
    a: int | str | None, b: int | str | None, same: int | str | None, other: int | str | None
) -> int | str | None:
    if isinstance(a, int) and isinstance(b, int):
        return same if a == b else other
    negative = any(isinstance(size, int) and size < 0 for size in (a, b))  # which no dimension is
    return other if negative and None not in (a, b) else None
