"""The bias of a linear layer: change it, add one where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.graph import add_initializer, constant, name_of
from qcompile.compiler.linear_layers import LinearLayer
from qcompile.compiler.provenance import stamp
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.prepare.untie import set_constant


def add_to_bias(layer: LinearLayer, change: npt.NDArray[Any], names: Names, made_by: str) -> None:
    """Let `layer` compute `change` more, one value for each output.

    A MatMul without a bias gets an Add behind it, which takes over the name of the result.
    """
    old, node = constant(layer.bias), layer.node
    bias = (change if old is None else change + old.reshape(-1)).astype(layer.weight.dtype.numpy())  # type: ignore[union-attr]
    if node.op_type != "MatMul":
        set_constant(node, 2, bias, names, "bias")
    elif layer.bias is not None:
        add = next(iter(node.outputs[0].uses()))
        set_constant(add.node, 1 - add.idx, bias, names)
    else:
        _add_behind(layer, bias, names, made_by)


def _add_behind(layer: LinearLayer, bias: npt.NDArray[Any], names: Names, made_by: str) -> None:
    node, graph, product = layer.node, layer.node.graph, layer.node.outputs[0]
    assert isinstance(graph, ir.Graph)
    name = name_of(product)
    added = add_initializer(graph, names.fresh(f"{node.name}_bias"), np.ascontiguousarray(bias), layer.weight.dtype)
    product.name = names.fresh(f"{name}_product")
    result = ir.Value(name=name, type=product.type, shape=product.shape)
    product.replace_all_uses_with(result, replace_graph_outputs=True)
    add = ir.Node("", "Add", [product, added], outputs=[result], name=names.fresh(f"{node.name}_bias_add"))
    graph.insert_after(node, add)
    stamp(add, made_by, [node])
