"""A layer of the graph becomes two thin ones.

    x -> layer -> y    =>    x -> NAME_thin -> layer -> y

The second keeps the node of the layer, with its name, bias and what follows it; the first is a node of the same
operator without a bias.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.graph import add_initializer, name_of
from qcompile.compiler.linear_layers import LinearLayer
from qcompile.compiler.low_rank import Factors
from qcompile.compiler.provenance import stamp
from qcompile.compiler.scratch import on_disk
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.transform.truncation.thin_forms import Strips, ThinForm


def write(layer: LinearLayer, form: ThinForm, factors: Factors, names: Names, made_by: str) -> None:
    """Let `factors` of what `form` decomposes, numpy arrays, compute what `layer` did."""
    node, graph, old = layer.node, layer.node.graph, layer.weight
    assert isinstance(graph, ir.Graph)
    right, left = _stored(layer, form, factors)
    first, second = (_initializer(old, graph, names, *side) for side in (("right", right), ("left", left)))
    thin = ir.node(node.op_type, [layer.input, first], name=names.fresh(f"{layer.name}_thin"))
    result, between = node.outputs[0], thin.outputs[0]
    between.name, between.type = names.fresh(f"{result.name}_thin"), result.type
    between.shape = _shape(layer, form, right)
    _set_attributes(thin, node, form)
    stamp(thin, made_by, [node])
    graph.insert_before(node, thin)
    node.replace_input_with(0, between)
    node.replace_input_with(1, second)
    del graph.initializers[name_of(old)]


def _initializer(old: ir.Value, graph: ir.Graph, names: Names, side: str, array: npt.NDArray[Any]) -> ir.Value:
    assert old.dtype is not None
    typed = on_disk(np.ascontiguousarray(array, dtype=old.dtype.numpy()))
    return add_initializer(graph, names.fresh(f"{old.name}_{side}"), typed, old.dtype)


def _stored(layer: LinearLayer, form: ThinForm, factors: Factors) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The weights of both in the layout of the model."""
    right, left, rank = factors.right, factors.left, factors.rank
    if layer.node.op_type != "Conv":
        outputs_first = layer.node.attributes.get_int("transB", 0)
        return (right[0], left[0]) if outputs_first else (right[0].T, left[0].T)
    if isinstance(form, Strips):
        columns = right.reshape(rank, form.channels, form.height, 1)
        return columns, left.reshape(form.outputs, form.width, rank, 1).transpose(0, 2, 3, 1)
    assert layer.weight.shape is not None
    kernel = [int(d) for d in layer.weight.shape.numpy()[1:]]
    return right.reshape(-1, *kernel), left.reshape(-1, rank, *(1 for _ in kernel[1:]))


def _shape(layer: LinearLayer, form: ThinForm, right: npt.NDArray[Any]) -> ir.Shape | None:
    """That of what lies between the two."""
    given, result = layer.input.shape, layer.node.outputs[0].shape
    if result is None or given is None:
        return None
    if layer.node.op_type != "Conv":
        return ir.Shape([*result[:-1], right.shape[0 if layer.node.attributes.get_int("transB", 0) else 1]])
    spatial = [result[2], given[3]] if isinstance(form, Strips) else result[2:]
    return ir.Shape([result[0], right.shape[0], *spatial])


def _set_attributes(thin: ir.Node, node: ir.Node, form: ThinForm) -> None:
    if node.op_type == "Gemm":
        thin.attributes.add(ir.AttrInt64("transB", node.attributes.get_int("transB", 0)))
    elif node.op_type == "Conv":
        thin.attributes.update(node.attributes)
        if isinstance(form, Strips):
            _keep_axis(thin, 0)
            _keep_axis(node, 1)
        else:
            for name in ("auto_pad", *_NEUTRAL):
                node.attributes.pop(name, None)


def _keep_axis(node: ir.Node, axis: int) -> None:
    """Leave the geometry of a convolution along one of its two axes."""
    for name, neutral in _NEUTRAL.items():
        if values := node.attributes.get_ints(name):
            kept = [v if i % 2 == axis else neutral for i, v in enumerate(values)]
            node.attributes.add(ir.AttrInt64s(name, kept))


_NEUTRAL = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 0}
"""What describes the window of a convolution, and the value that is no window along an axis."""
