"""SVDQuant: what stands out of a weight goes into a float branch of low rank; few bits are left with the rest.

    y = x W^T = x (W - L R)^T + (x R^T) L^T,    L R = argmin over rank r  tr (W - L R) M (W - L R)^T

Codes miss each value by a share of the largest ones around it, so a rest of less energy is missed by less. M says
whose energy counts (low_rank_branch.py): by default every weight's alike, the plain SVD of the paper, which takes most
from the blocks with the largest values; in MiniLM and small decoders it beats a weighting by the inputs. Where inputs
become codes too, put smooth-quant in front, as the paper does. The rest gets its codes from the passes behind; gptq
chooses them together.

The layers are those that the recipe places with the fewest bits. Shapes: x [..., K], W [N, K], L [N, r], R [r, K].
Source: Li et al., "SVDQuant: Absorbing Outliers by Low-Rank Components for 4-Bit Diffusion Models", 2024
(arXiv:2411.05007).

Errors: RecipeError where no layer is placed behind it; DataError where M asks for samples and there are none.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.linear_layers import LinearLayer
from qcompile.compiler.passes import Fact, Phase
from qcompile.compiler.simulation import placement
from qcompile.errors import RecipeError
from qcompile.passes.transform.low_rank_branch import Branches, BranchingPass, layers_for_branches


class Svdquant(BranchingPass):
    """Take the strongest directions of each weight into a float branch."""

    name: ClassVar[str] = "svdquant"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    float_equivalent: ClassVar[bool] = True
    measures: ClassVar[bool] = True

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        units = placement(model, context).units
        if not any(unit.weight_spec for unit in units.values()):
            raise RecipeError(
                f"{self.name} finds no layer to quantize",
                hint="put a step that places layers behind it, and in front a calibrate where that needs statistics",
            )
        layers, left_out = layers_for_branches(model, units, self.rank)
        branches, shares = Branches(model, context, self.name), []
        for layer, factors, share in self.branches(layers, LinearLayer.matrix, model, context):
            branches.add(layer, factors)
            shares.append(share)
        self.tell(context, "take", "the energy of their weights", shares, branches, left_out)
        return bool(layers)
