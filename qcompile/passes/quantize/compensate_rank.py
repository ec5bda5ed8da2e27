"""Low-rank compensation: a float branch makes good what the codes of a layer miss.

    y = x Q^T + (x R^T) L^T,    L R = argmin over rank r  tr (E - L R) M (E - L R)^T,   E = W - Q

M says which errors count (low_rank_branch.py): all weights alike gives LoRC, the mean squares of the inputs LQER, and
the inputs together, the default, what is nearest in the layer's outputs. The codes are those that the passes before
have chosen, whatever their format, and stay; a layer is solved on what those before it give with their branches. As
W - L R becomes the weight that Q stands for, the float function stays too, and later passes see it.

The layers are those with the fewest bits whose result is float. A branch of few columns weighs as much as its layer
where that is narrow; in 8 bits it makes good as much for a quarter of the size. Shapes: x [..., K], W, Q [N, K],
L [N, r], R [r, K].
Source: Yao et al., "ZeroQuant-V2", 2023 (LoRC); Zhang et al., "LQER: Low-Rank Quantization Error Reconstruction for
LLMs", 2024 (arXiv:2402.02446), there with mean magnitudes; Zhang et al., "QERA", 2025 (arXiv:2410.06040), for M = H.

Errors: DataError where M asks for samples and there are none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.context import CompileContext
from qcompile.compiler.layer_rows import matrix
from qcompile.compiler.linear_layers import LinearLayer, linear_layers
from qcompile.compiler.params import dequantize
from qcompile.compiler.passes import Fact, Phase
from qcompile.compiler.plan import Form, QuantizedWeight
from qcompile.compiler.units import candidates
from qcompile.passes.quantize.place_weights import stored_unit
from qcompile.passes.quantize.round_to_nearest import quantized_weight
from qcompile.passes.quantize.weight_options import Wanted
from qcompile.passes.transform.low_rank_branch import Branches, BranchingPass, Metric, layers_for_branches

_FLOAT_RESULT = (Form.INPUTS, Form.DYNAMIC, Form.BLOCKS, Form.WEIGHTS, Form.ROUNDED)


class CompensateRank(BranchingPass):
    """Add what codes miss as a float branch of low rank."""

    name: ClassVar[str] = "compensate-rank"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    measures: ClassVar[bool] = True

    metric: Metric = Field(default="outputs", description=BranchingPass.model_fields["metric"].description)
    branch: Literal["float", "int8"] = Field(
        default="float", description="how the weights of branches are stored; int8 where the target stores such"
    )

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        plan, shares = context.plan, []
        units = {name: unit for name, unit in plan.units.items() if unit.form in _FLOAT_RESULT}
        layers, left_out = layers_for_branches(model, units, self.rank)
        branches = [Branches(m, context, self.name) for m in (model, context.unquantized) if m is not None]
        alike = _by_name(context.unquantized)

        def missed(layer: LinearLayer) -> npt.NDArray[np.float32]:
            return layer.matrix() - _values(layer, plan.weights[str(layer.weight.name), layer.name])

        for layer, factors, share in self.branches(layers, missed, model, context):
            for written, where in zip(branches, (layer, alike.get(layer.name)), strict=False):
                if where is not None:
                    written.add(where, factors)
            shares.append(share)
        if self.branch == "int8":
            _store(branches[0].products, model, context)
        self.tell(context, "make good", "what their codes miss", shares, branches[0], left_out)
        return bool(layers)


def _store(products: Collection[ir.Node], model: ir.Model, context: CompileContext) -> None:
    """Give the products of branches 8-bit weights, as far as the target stores such."""
    plan, wanted = context.plan, Wanted("branch", "int8")
    for candidate in candidates(model.graph, context.target):
        if candidate.node not in products or candidate.obstacle:
            continue
        unit, _ = stored_unit(candidate, wanted, context)
        if unit is not None:
            plan.unpin(unit.node)
            plan.units[unit.node] = unit
            plan.weights[str(unit.weight), unit.node] = quantized_weight(candidate.node, unit, candidate.row, plan)


def _by_name(model: ir.Model | None) -> Mapping[str, LinearLayer]:
    return {layer.name: layer for layer in linear_layers(model)[0]} if model is not None else {}


def _values(layer: LinearLayer, weight: QuantizedWeight) -> npt.NDArray[np.float32]:
    """What the codes of a layer stand for, [1, N, K]."""
    values: npt.NDArray[np.float32] = matrix(layer.node, dequantize(weight.codes, weight.params))
    return values
