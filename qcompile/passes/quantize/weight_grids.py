"""The weights of layers that read float, and other grids for them.

Layers whose inputs are codes are left out: the codes of their biases follow from the scales of their weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant
from qcompile.compiler.params import QuantParams
from qcompile.compiler.plan import QuantizedWeight, Unit
from qcompile.compiler.targets.table import Lowering, Row
from qcompile.compiler.units import lowering_of, planned
from qcompile.compiler.weight_params import weight_codes
from qcompile.runtime.ahead import ahead, cores
from qcompile.runtime.device import Device

Array = Any  # numpy.ndarray or torch.Tensor


@dataclass(frozen=True, eq=False)
class Layer:
    """One node that reads a planned weight."""

    node: ir.Node
    unit: Unit
    row: Row

    @property
    def key(self) -> tuple[str, str]:
        """Of its weight in the plan."""
        return str(self.unit.weight), self.unit.node

    @property
    def lowering(self) -> Lowering:
        return lowering_of(self.unit, self.row)

    def weight(self) -> Array:
        assert self.row.weight is not None
        found = constant(self.node.inputs[self.row.weight])
        assert found is not None
        return found


def layers_that_read_float(model: ir.Model, context: CompileContext) -> list[Layer]:
    """In the order of the graph; without tables that read the codes of a product."""
    found = [Layer(node, unit, row) for node, unit, row in planned(model, context) if not unit.tied]
    return [layer for layer in found if layer.unit.weight_spec is not None and not any(layer.unit.inputs)]


def readers(context: CompileContext) -> Counter[str]:
    """How many units have codes of each weight that are read."""
    return Counter(weight for weight, node in context.plan.weights if not context.plan.units[node].tied)


def requantize(
    layers: Sequence[Layer], grid: Callable[[Layer, Array, QuantParams], QuantParams], context: CompileContext
) -> None:
    """Give the weights of `layers` the grid that `grid` makes of the weight and the planned one, and nearest codes.

    Weights go through the device one after the other; on the CPU all cores have one each.
    """
    weights = context.plan.weights

    def made(layer: Layer) -> QuantizedWeight:
        weight = context.device.put(layer.weight())
        params = grid(layer, weight, weights[layer.key].params)
        return QuantizedWeight(params, weight_codes(weight, params))

    at_once = cores() if context.device is Device.CPU else 1
    for layer, found in zip(layers, ahead(made, layers, at_once), strict=True):
        weights[layer.key] = found
