"""Linear layers end a scale: as producers they divide their weight's columns, as consumers they multiply its rows.

    (W[:, j] / s_j, b_j / s_j)  makes x / s,      W[j, :] * s_j  reads it.

A product of two activations carries a scale from one factor to the result.
"""

from __future__ import annotations

import onnx_ir as ir

from qcompile.compiler.graph import is_constant, rank
from qcompile.passes.transform.folding.moves import (
    Divide,
    Join,
    Layout,
    Move,
    Moves,
    Multiply,
    Rules,
    Through,
    along,
    collapsed,
    fitted,
    keep,
    lifted,
)

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_VARIABLE_WEIGHT = "whose weight is not a constant matrix"


def channel_axis(node: ir.Node) -> int | None:
    """The axis of the channels that a linear layer reads; None for another node."""
    if node.domain not in ("", "ai.onnx") or len(node.inputs) < 2 or not is_constant(node.inputs[1]):
        return None
    if node.op_type == "MatMul":
        return -1 if rank(node.inputs[1]) == 2 and not is_constant(node.inputs[0]) else None
    if node.op_type == "Gemm":
        return None if node.attributes.get_int("transA", 0) else -1
    return 1 if node.op_type in _CONVOLUTIONS else None


def channels(node: ir.Node) -> int:
    """How many channels a linear layer reads."""
    shape = _weight_shape(node)
    match node.op_type:
        case "Conv":
            return shape[1] * node.attributes.get_int("group", 1)
        case "Gemm":
            return shape[1 if node.attributes.get_int("transB", 0) else 0]
    return shape[0]


def _weight_shape(node: ir.Node) -> tuple[int, ...]:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    return tuple(int(d) for d in weight.shape.numpy())


def _read(node: ir.Node, index: int, layout: Layout) -> list[Moves]:
    if node.op_type == "MatMul" and not any(is_constant(v) for v in node.inputs):
        return _product_read(node, index, layout)
    axis = channel_axis(node)
    if axis is None or index != 0:
        return keep(node, layout, _VARIABLE_WEIGHT)
    vector, equal = along(layout, axis, channels(node))
    return [[equal, Multiply(node, 1, _on_inputs(node, vector))]]


def _written(node: ir.Node, _: int, layout: Layout) -> list[Moves]:
    if node.op_type == "MatMul" and not any(is_constant(v) for v in node.inputs):
        return _product_written(node, layout)
    axis = channel_axis(node)
    if axis is None:
        return keep(node, layout, _VARIABLE_WEIGHT)
    vector, equal = along(layout, axis, _outputs(node))
    moves: list[Move] = [equal, Divide(node, 1, _on_outputs(node, vector))]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        if not is_constant(bias):
            return keep(node, layout, "whose bias is not a constant")
        moves.append(Divide(node, 2, vector))
    return [moves]


def _outputs(node: ir.Node) -> int:
    shape = _weight_shape(node)
    match node.op_type:
        case "Conv":
            return shape[0]
        case "ConvTranspose":
            return shape[1] * node.attributes.get_int("group", 1)
        case "Gemm" if node.attributes.get_int("transB", 0):
            return shape[0]
    return shape[1]


def _on_inputs(node: ir.Node, vector: Layout) -> Layout:
    """A vector over the channels that are read, so that it multiplies the weight."""
    shape = _weight_shape(node)
    rest = (1,) * (len(shape) - 2)
    match node.op_type:
        case "Conv":
            group = node.attributes.get_int("group", 1)
            return vector.reshape(group, -1).repeat(shape[0] // group, axis=0).reshape(*shape[:2], *rest)
        case "Gemm" if node.attributes.get_int("transB", 0):
            return vector.reshape(1, -1)
    return vector.reshape(-1, 1, *rest)


def _on_outputs(node: ir.Node, vector: Layout) -> Layout:
    """A vector over the channels that are written, so that it divides the weight."""
    shape = _weight_shape(node)
    rest = (1,) * (len(shape) - 2)
    match node.op_type:
        case "ConvTranspose":
            group = node.attributes.get_int("group", 1)
            return vector.reshape(group, -1).repeat(shape[0] // group, axis=0).reshape(*shape[:2], *rest)
        case "MatMul":
            return vector.reshape(1, -1)
        case "Gemm" if not node.attributes.get_int("transB", 0):
            return vector.reshape(1, -1)
    return vector.reshape(-1, 1, *rest)


def _product_read(node: ir.Node, index: int, layout: Layout) -> list[Moves]:
    """The summed axis must have one scale; the other axes go on to the result."""
    if layout.ndim < 2:
        return keep(node, layout, "a product of vectors")
    open_layout, equal = collapsed(layout, [layout.ndim - 1 if index == 0 else layout.ndim - 2])
    result = lifted(open_layout, node.outputs[0])
    if result is None:
        return keep(node, layout, "whose result has no known shape")
    return [[equal, Through(node, index), Join(node.outputs[0], result)]]


def _product_written(node: ir.Node, layout: Layout) -> list[Moves]:
    """The second factor (the values of an attention) or the first takes the scale."""
    found: list[Moves] = []
    for index in (1, 0):
        operand = node.inputs[index]
        if operand is None or layout.ndim < 2 or (rank(operand) or 0) < 2:
            continue
        open_layout, equal = collapsed(layout, [layout.ndim - 2 if index == 1 else layout.ndim - 1])
        fit = fitted(open_layout, operand)
        if fit is not None:
            found.append([equal, fit[1], Through(node, index), Join(operand, fit[0])])
    return found or keep(node, layout, "whose factors have no known shape")


LINEAR = dict.fromkeys(("MatMul", "Gemm", *_CONVOLUTIONS), Rules(_read, _written))
