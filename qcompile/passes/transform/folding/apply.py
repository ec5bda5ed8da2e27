"""Fold a vector s > 0 into a site: c / s in its producers, W * s in its consumers, the function stays.

Where the site inserts a Mul, x * (1 / s) stands before the consumers. Shared constants are untied first.
Computed in float64, stored in the constants' own type.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.graph import add_initializer, constant, nodes
from qcompile.compiler.provenance import stamp
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.prepare.untie import set_constant
from qcompile.passes.transform.folding.site import Factor, Site, factors

Vector = npt.NDArray[np.float64]


def apply(model: ir.Model, site: Site, scales: Vector, made_by: str) -> None:
    """Fold `scales`, shape [site.scales], into `site` of `model`; every node it changes is stamped `made_by`.

    Nodes of the site that `model` does not hold (a block of the whole) are left out.
    """
    names, found = Names(model), {str(n.name): n for n in nodes(model)}
    for taken, vector in ((site.divided, 1 / scales), (site.multiplied, scales)):
        for factor in taken:
            if factor.node in found:
                _scale(found[factor.node], factor, vector, names)
                stamp(found[factor.node], made_by, [found[factor.node]])
    if site.inserted:
        _insert(site, [found[f.node] for f in site.multiplied if f.node in found], 1 / scales, names, made_by)


def largest(model: ir.Model, taken: tuple[Factor, ...], scales: int) -> Vector:
    """max |c| over the elements that belong to each scale, over all of `taken`; 0 where there is none."""
    found, result = {str(n.name): n for n in nodes(model)}, np.zeros(scales + 1)
    for factor in taken:
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


def _insert(site: Site, readers: list[ir.Node], vector: Vector, names: Names, made_by: str) -> None:
    """A Mul before the first of `readers`, which all read the same value."""
    first = readers[0]
    assert isinstance(first.graph, ir.Graph)
    value = first.inputs[0]
    assert value is not None
    assert value.shape is not None
    axis = site.axes[site.inserted] % len(value.shape)
    shape = (-1, *(1,) * (len(value.shape) - 1 - axis))
    constant_vector = vector[site.inputs[site.inserted]].astype(np.float32).reshape(shape)
    scale = add_initializer(first.graph, names.fresh(f"{value.name}_smoothing"), constant_vector)
    product = ir.node("Mul", [value, scale], name=names.fresh(f"{value.name}_smooth"))
    result = product.outputs[0]
    result.name, result.type, result.shape = names.fresh(f"{value.name}_smoothed"), value.type, value.shape
    stamp(product, made_by, readers)
    first.graph.insert_before(first, product)
    for node in readers:
        node.replace_input_with(0, result)
