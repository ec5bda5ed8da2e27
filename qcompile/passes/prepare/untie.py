"""A constant input that a node may change for itself alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.graph import add_initializer, name_of
from qcompile.passes.prepare.surgery import Names, sole_reader


def set_constant(node: ir.Node, index: int, array: npt.NDArray[Any], names: Names, suffix: str = "") -> ir.Value:
    """Give `node` the constant `array` as input `index` and leave every other reader as it was.

    An initializer that `node` alone reads is changed in place and keeps its name; a shared one is
    untied: `node` gets a copy under a name of its own. An input that was missing is added.

    Args:
        suffix: ends the name of an input that was missing ("bias").
    """
    old = node.inputs[index] if index < len(node.inputs) else None
    if old is not None and old.const_value is not None and sole_reader(old) is node:
        old.const_value = ir.tensor(np.ascontiguousarray(array), name=name_of(old))
        old.shape = ir.Shape(array.shape)
        return old
    assert isinstance(node.graph, ir.Graph)
    base = f"{name_of(old)}_{node.name}" if old is not None else f"{node.name}_{suffix}"
    value = add_initializer(node.graph, names.fresh(base), np.ascontiguousarray(array))
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)
    return value
