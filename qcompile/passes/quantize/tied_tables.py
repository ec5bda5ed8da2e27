"""Tables that are the weight of a product as well: a head that shares its embedding.

Exporters write one table where both read the same initializer, and two where the head's is transposed; so the values
are compared, not the names. Quantized alike, both read one set of codes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import constant
from qcompile.compiler.plan import Unit
from qcompile.compiler.specs import PerBlock, PerChannel, QuantSpec
from qcompile.compiler.targets.table import Lowering

_ROWS = 1024
"""Rows that are compared at a time: neither table need be in memory as a whole."""


def multiplied_table(table: Unit, products: list[Unit], values: dict[str, ir.Value]) -> Unit | None:
    """The one of `products` whose weight holds the same numbers as `table`, row by row or transposed."""
    for product in products:
        if _same_numbers(values[str(table.weight)], values[str(product.weight)], _channels_first(product)):
            return product
    return None


def share(table: Unit, product: Unit) -> bool:
    """Whether both can read one set of codes: equal blocks along what is summed over."""
    specs = [u.weight_spec for u in (table, product)]
    patterns = table.lowering is Lowering.BLOCK_ROWS and product.lowering is Lowering.BLOCKS
    return patterns and None not in specs and _without_axis(specs[0]) == _without_axis(specs[1])


def _without_axis(spec: QuantSpec | None) -> object:
    assert spec is not None
    grain = spec.granularity
    return spec.format, spec.symmetric, spec.full_range, spec.scales, isinstance(grain, PerBlock) and grain.size


def _channels_first(product: Unit) -> bool:
    """Whether the weight is [N, K], as a table is."""
    grain = product.weight_spec.granularity if product.weight_spec else None
    return grain.axis == 1 if isinstance(grain, PerBlock) else grain == PerChannel(0)


def _same_numbers(table: ir.Value, weight: ir.Value, channels_first: bool) -> bool:
    if table is weight:
        return channels_first
    shapes = [tuple(v.shape.numpy()) if v.shape is not None else () for v in (table, weight)]
    if shapes[0] != (shapes[1] if channels_first else shapes[1][::-1]):
        return False
    first, second = constant(table), constant(weight)
    assert first is not None
    assert second is not None
    rows = second if channels_first else second.T
    return all(np.array_equal(first[i : i + _ROWS], rows[i : i + _ROWS]) for i in range(0, len(first), _ROWS))
