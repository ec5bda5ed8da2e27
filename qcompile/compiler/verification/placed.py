"""The artifact's operations in order, with the conversions before each: the picture of where Q and DQ sit."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qcompile.compiler.graph import is_constant, nodes
from qcompile.compiler.operators.calls import is_row_quantizer
from qcompile.compiler.plan import Form, Unit
from qcompile.compiler.provenance import sources
from qcompile.compiler.report import PlacedNode

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


def placed_nodes(artifact: ir.Model, units: Mapping[str, Unit], reasons: Mapping[str, str]) -> list[PlacedNode]:
    """One entry for each operation.

    A conversion counts where it costs time: a QuantizeLinear of a float operator's output before a unit,
    and a DequantizeLinear of a unit's codes before a float operator.
    """
    by_name = {name: unit for unit in units.values() for name in (unit.lowered, unit.node)}
    writers = {unit.output: unit for unit in units.values() if unit.form in (Form.FULL, Form.PASS)}
    absorbed = {name for unit in units.values() for name in (unit.bias, unit.activation) if name}
    quantized: set[ir.Value] = set()
    found: list[PlacedNode] = []
    for node in nodes(artifact):
        name = str(node.name)
        if node.op_type in (*_CONVERSIONS, "Constant") or name in absorbed:
            continue
        unit = by_name.get(name)
        form = unit.form if unit is not None else Form.FLOAT
        if form is Form.FLOAT and any(source in units for source in sources(node)):
            continue  # a helper that lowering put beside a unit
        entering = [q for v in node.inputs if (q := _entering(v, writers)) is not None and q not in quantized]
        leaving = [v for v in node.inputs if _leaving(v)] if not form.low_precision else []
        quantized.update(entering)
        found.append(
            PlacedNode(
                node=unit.node if unit is not None else name,
                op_type=node.op_type,
                form=form.value,
                reason="" if form.low_precision else reasons.get(name, ""),
                quantizes=len(set(entering)),
                dequantizes=len(set(leaving)),
            )
        )
    return found


def _entering(value: ir.Value | None, writers: Mapping[str, Unit]) -> ir.Value | None:
    """The codes behind `value` when a float value was converted to make them."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "DequantizeLinear":
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or not (node.op_type == "QuantizeLinear" or is_row_quantizer(node)) or node.inputs[0] is None:
        return None
    name = node.outputs[0].name or ""
    return None if name.removesuffix("_quantized") in writers else node.outputs[0]


def _leaving(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == "DequantizeLinear" and not is_constant(node.inputs[0])
