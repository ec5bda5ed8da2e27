"""Linear layers begin and end channels: a column of a weight writes one, a row reads one.

    y[j] = sum_i x[i] W[i, j]      i runs along x and the first axis of W, j along the second and y.

A convolution in groups loses whole groups, with all that they read and write; one with a computed kernel, nothing. A
product of two activations needs every channel that it sums over, whether a weight reads it or not.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import is_constant
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.transform.channels.flow import Axes, Axis, Flow, Kept, Rule
from qcompile.passes.transform.channels.group import Side
from qcompile.passes.transform.channels.indices import FROZEN

_ONE = np.full(1, FROZEN)


def _matmul(node: ir.Node, flow: Flow) -> list[Axes | None]:
    a, b = flow.axes(node, 0), flow.axes(node, 1)
    if a is None or b is None or min(len(a), len(b)) < 2:
        return flow.freeze_inputs(node)
    _mark(node, flow, 0, writes=len(a) - 2, reads=len(a) - 1)
    _mark(node, flow, 1, writes=len(b) - 1, reads=len(b) - 2)
    flow.join(a[-1], b[-2])
    _sum(node, flow, a[-1])
    return [(*flow.broadcast((*a[:-2], _ONE), (*b[:-2], _ONE))[:-1], a[-2], b[-1])]


def _gemm(node: ir.Node, flow: Flow) -> list[Axes | None]:
    a, b, c = (flow.axes(node, i) for i in range(3))
    if a is None or b is None:
        return flow.freeze_inputs(node)
    rows, summed = a[::-1] if node.attributes.get_int("transA", 0) else a
    turned = node.attributes.get_int("transB", 0)
    also, columns = b[::-1] if turned else b
    _mark(node, flow, 1, writes=0 if turned else 1, reads=1 if turned else 0)
    flow.join(summed, also)
    _sum(node, flow, summed)
    return [flow.broadcast((rows, columns), *([c] if c is not None else []))]


def _einsum(node: ir.Node, flow: Flow) -> list[Axes | None]:
    """Axes of one letter are one; a weight reads along those that are summed over."""
    asked, _, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    letters, operands = asked.split(","), [flow.axes(node, i) for i in range(len(node.inputs))]
    if "." in asked or not result or any(len(a or ()) != len(word) for a, word in zip(operands, letters, strict=True)):
        return flow.freeze_inputs(node)
    axes: dict[str, list[Axis]] = {}
    for index, (operand, word) in enumerate(zip(operands, letters, strict=True)):
        for place, (axis, letter) in enumerate(zip(operand or (), word, strict=True)):
            axes.setdefault(letter, []).append(axis)
            if is_constant(node.inputs[index]):
                side = Side.READS if letter not in result else Side.BESIDE if asked.count(letter) > 1 else Side.WRITES
                flow.sides[(node, index), place] = side
    joined = {letter: flow.join(*together) for letter, together in axes.items()}
    read = {letter for v, word in zip(node.inputs, letters, strict=True) if is_constant(v) for letter in word}
    flow.freeze(*(axis for letter, axis in joined.items() if letter not in result and letter not in read))
    return [tuple(joined[letter] for letter in result)]


def _conv(node: ir.Node, flow: Flow) -> list[Axes | None]:
    x, w, b = (flow.axes(node, i) for i in range(3))
    if x is None or w is None or not is_constant(node.inputs[1]):
        return flow.freeze_inputs(node)
    _mark(node, flow, 1, writes=0, reads=1)
    groups = node.attributes.get_int("group", 1)
    if groups == 1:
        flow.join(x[1], w[1])
    else:
        flow.freeze(w[1])
        _whole_groups(flow, x[1], w[0], groups)
    return [_image(node, flow, x, w, w[0], b)]


def _conv_transpose(node: ir.Node, flow: Flow) -> list[Axes | None]:
    x, w, b = (flow.axes(node, i) for i in range(3))
    if x is None or w is None or w[1] is None or not is_constant(node.inputs[1]):
        return flow.freeze_inputs(node)
    flow.join(x[1], w[0])
    groups, written = node.attributes.get_int("group", 1), w[1]
    if groups == 1:
        _mark(node, flow, 1, writes=1, reads=0)
    else:
        _mark(node, flow, 1, writes=0, reads=1)
        flow.freeze(w[1])
        written = flow.fresh(len(w[1]) * groups)
        _whole_groups(flow, x[1], written, groups)
    return [_image(node, flow, x, w, written, b)]


def _whole_groups(flow: Flow, read: Axis, written: Axis, groups: int) -> None:
    if read is None or written is None:
        flow.freeze(read, written)
    else:
        flow.indices.unite(read.reshape(groups, -1), read.reshape(groups, -1)[:, :1])
        flow.indices.unite(written.reshape(groups, -1), read.reshape(groups, -1)[:, :1])


def _image(node: ir.Node, flow: Flow, x: Axes, w: Axes, written: Axis, bias: Axes | None) -> Axes:
    flow.freeze(*x[2:], *w[2:])
    if bias is not None:
        flow.join(written, bias[0])
    if written is not None:
        flow.filters.append(written)
    result = flow.frozen(node.outputs[0])
    return (x[0], written, *(result[2:] if result is not None else [None] * len(x[2:])))


def _sum(node: ir.Node, flow: Flow, *summed: Axis) -> None:
    if not any(is_constant(v) for v in node.inputs[:2]):
        flow.freeze(*summed)


def _mark(node: ir.Node, flow: Flow, index: int, writes: int, reads: int) -> None:
    if is_constant(node.inputs[index]):
        flow.sides[(node, index), writes] = Side.WRITES
        flow.sides[(node, index), reads] = Side.READS


def _fewer_groups(node: ir.Node, kept: Kept, names: Names) -> None:
    groups, mask = node.attributes.get_int("group", 1), kept.masks(node.inputs[0]).get(1)
    if groups > 1 and mask is not None:
        node.attributes["group"] = ir.AttrInt64("group", int(mask.reshape(groups, -1)[:, 0].sum()))


LINEAR = {
    "MatMul": Rule(_matmul),
    "Gemm": Rule(_gemm),
    "Einsum": Rule(_einsum),
    "Conv": Rule(_conv, _fewer_groups),
    "ConvTranspose": Rule(_conv_transpose, _fewer_groups),
}
