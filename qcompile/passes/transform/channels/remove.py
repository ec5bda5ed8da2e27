"""Remove channels: every tensor that they run through gets narrower, and with it every size that the graph holds.

    W' = W[:, kept],  b' = b[kept],  V' = V[kept, :]      the function of what stays is what it was

Source: Li et al. 2017 (arXiv:1608.08710) for filters, Fang et al. 2023 (arXiv:2301.12900) for all that depends on them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import constant, name_of
from qcompile.compiler.provenance import stamp
from qcompile.errors import PassError
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.prepare.untie import set_constant
from qcompile.passes.transform.channels.flow import Kept, Mask
from qcompile.passes.transform.channels.group import ChannelGroup
from qcompile.passes.transform.channels.search import rule_of


def remove(model: ir.Model, removed: Mapping[ChannelGroup, Collection[int]], made_by: str) -> None:
    """Take channels out of `model`, in which (or in a clone of which) the groups were found.

    Afterwards the groups are stale: find them anew. Every node that changes is stamped `made_by`.

    Raises:
        PassError: nothing would be left along an axis; the model is unchanged.
    """
    nodes = {str(n.name): n for n in model.graph}
    values = {name_of(v): v for n in model.graph for v in n.outputs if v.name}
    kept = Kept()
    for group, channels in removed.items():
        gone = np.fromiter(channels, np.intp)
        for part in group.parts:
            kept.drop((nodes[part.node], part.index), part.axis, np.isin(part.channels, gone))
        for activation in group.activations:
            kept.drop(values[activation.value], activation.axis, np.isin(activation.channels, gone))
    for of, masks in kept:
        if not all(mask.any() for mask in masks.values()):
            where = of.name if isinstance(of, ir.Value) else of[0].name
            raise PassError("every channel would be removed", where=f"'{where}'")
    names = Names(model)
    _narrow(kept, names)
    for node in model.graph:
        operands = ((node, i) for i in range(len(node.inputs)))
        if not any(kept.masks(of) for of in (*operands, *node.inputs, *node.outputs)):
            continue
        rule = rule_of(node)
        assert rule is not None
        if rule.resize is not None:
            rule.resize(node, kept, names)
        stamp(node, made_by, [node])


def _narrow(kept: Kept, names: Names) -> None:
    """Slice constants and shapes. A constant that several nodes read stays one where all lose the same of it."""
    done = set[ir.Value]()
    for of, masks in kept:
        if isinstance(of, ir.Value):
            sizes = [int(masks[i].sum()) if i in masks else size for i, size in enumerate(of.shape or ())]
            of.shape = ir.Shape(sizes) if sizes else None
            continue
        node, index = of
        value = node.inputs[index]
        assert value is not None
        if value in done:
            continue
        array = constant(value)
        assert array is not None
        for axis, mask in masks.items():
            array = array.compress(mask, axis)
        if value.const_value is not None and all(_same(masks, kept.masks(use)) for use in value.uses()):
            value.const_value, value.shape = ir.tensor(array, name=name_of(value)), ir.Shape(array.shape)
            done.add(value)
        else:
            set_constant(node, index, array, names)


def _same(a: dict[int, Mask], b: dict[int, Mask]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[axis], b[axis]) for axis in a)
