"""Fold a vector s > 0 into a site: c / s in its producers, W * s in its consumers, the function stays.

Where the site inserts a Mul, x * (1 / s) stands before the consumers. Shared constants are untied first.
Computed in float64, stored in the constants' own type.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import add_initializer, constant, name_of, nodes
from qcompile.compiler.provenance import stamp, stamp_channels
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.prepare.untie import set_constant
from qcompile.passes.transform.folding.site import Factor, Groups, Site, Vector, factors


def apply(model: ir.Model, site: Site, scales: Vector, made_by: str) -> dict[str, str]:
    """Fold `scales`, shape [site.scales], into `site` of `model`; every node it changes is stamped `made_by`.

    `model` may be a block of the model in which the site was found: what the site divides is divided where it
    enters the block, and multiplied where it leaves it.

    Returns:
        Values that stay as they were beside one that a Mul scales: {name: name of the scaled one}.
    """
    names, found = Names(model), {str(n.name): n for n in nodes(model)}
    for taken, vector in ((site.divided, 1 / scales), (site.multiplied, scales)):
        for factor in taken:
            if factor.node in found:
                _scale(found[factor.node], factor, vector, names)
                stamp_channels(found[factor.node], made_by, [found[factor.node]])
    made: dict[str, str] = {}
    present = [found[f.node] for f in site.multiplied if f.node in found]
    if site.inserted and present:
        value, readers = present[0].inputs[0], present
        assert value is not None
        made[site.inserted] = _insert(value, _row(site, value), 1 / scales, readers, names, made_by)
    for value in model.graph.inputs:
        name = name_of(value)
        if name in site.values and value.uses():
            readers = [n for n in model.graph if value in n.inputs]
            made[name] = _insert(value, site.values[name], 1 / scales, readers, names, made_by)
    for value in list(model.graph.outputs):
        name = name_of(value)
        if name in site.values and value.producer() is not None:
            made[name] = _leave(model.graph, value, site.values[name], scales, names)
    return made


def largest(model: ir.Model, taken: tuple[Factor, ...], scales: int) -> Vector:
    """max |c| over the elements that belong to each scale, over those of `taken` that lie in `model`, which may be a
    block; 0 where there is none."""
    found, result = {str(n.name): n for n in nodes(model)}, np.zeros(scales + 1)
    for factor in taken:
        if factor.node not in found:
            continue
        array = constant(found[factor.node].inputs[factor.index])
        assert array is not None
        places = np.broadcast_to(factor.groups, np.broadcast_shapes(factor.groups.shape, array.shape))
        np.maximum.at(result, places, np.abs(array.astype(np.float64)))
    return result[:-1]


def _scale(node: ir.Node, factor: Factor, vector: Vector, names: Names) -> None:
    array = constant(node.inputs[factor.index])
    assert array is not None
    scaled = array.astype(np.float64) * factors(factor.groups, vector)
    set_constant(node, factor.index, scaled.astype(array.dtype), names)


def _row(site: Site, value: ir.Value) -> Groups:
    """The groups of the value behind which the site inserts its Mul."""
    assert value.shape is not None
    axis = site.axes[site.inserted] % len(value.shape)
    return site.inputs[site.inserted].reshape(-1, *(1,) * (len(value.shape) - 1 - axis))


def _insert(value: ir.Value, groups: Groups, vector: Vector, readers: list[ir.Node], names: Names, made_by: str) -> str:
    """A Mul between `value` and `readers`, which stand in one graph in this order; returns what it writes."""
    graph = readers[0].graph
    assert isinstance(graph, ir.Graph)
    scale = add_initializer(graph, names.fresh(f"{value.name}_smoothing"), factors(groups, vector).astype(np.float32))
    product = ir.node("Mul", [value, scale], name=names.fresh(f"{value.name}_smooth"))
    result = product.outputs[0]
    result.name, result.type, result.shape = names.fresh(f"{value.name}_smoothed"), value.type, value.shape
    stamp(product, made_by, readers)
    graph.insert_before(readers[0], product)
    for node in readers:
        for index, read in enumerate(node.inputs):
            if read is value:
                node.replace_input_with(index, result)
    return name_of(result)


def _leave(graph: ir.Graph, value: ir.Value, groups: Groups, scales: Vector, names: Names) -> str:
    """Let the block return `value` as it was."""
    scale = add_initializer(graph, names.fresh(f"{value.name}_leaving"), factors(groups, scales).astype(np.float32))
    product = ir.node("Mul", [value, scale], name=names.fresh(f"{value.name}_leave"))
    name, inner = name_of(value), names.fresh(f"{value.name}_smoothed")
    result = product.outputs[0]
    result.type, result.shape = value.type, value.shape
    graph.outputs[graph.outputs.index(value)] = result
    value.name, result.name = inner, name
    graph.append(product)
    return inner
