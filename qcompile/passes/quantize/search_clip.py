"""Clip search: each block of weights covers the part of its range that makes its error smallest.

    s_b, z_b = those of the range [r min W_b, r max W_b],   r = argmin sum_{k in b} E[x_k^2]^p (W_k - Q_k)^2

r runs over a grid around 1: below, the few largest weights are clipped and the others get a finer grid; a little
above, the grid may meet the weights better. With samples an error counts as much as the input it is multiplied with,
which is the error of the output if inputs are uncorrelated: x is what the layer reads behind the quantized layers
before it. p is 1; `gptq` itself makes good the errors of large inputs, and in front of it 1/2 is better (on layers of
SmolLM2-135M its error falls by 7 to 12 %; with 1 it may rise). Without samples a weight stands for its input:
large ones tend to meet large inputs. (On layers of SmolLM2-135M in int4, blocks of 32, the error of the output falls by
2.3 dB with samples and by 0.2 dB so, and rises by 0.1 dB if all weights count the same.) Rows of tables are looked up,
not multiplied, so theirs do count the same. Scales that are powers of two take the next one on either side. The range
itself is a candidate, so no block becomes worse than by round-to-nearest. AWQ leaves queries and keys as they are; here
they gain (perplexity of that model 29.4, and 30.0 without them).

A weight that two nodes read in one format keeps the same codes for both. Layers whose inputs are codes keep their
scales, from which the codes of their biases follow. Shapes: W [N, K] in the model's layout, r [N, blocks].
Source: the clipping of Lin et al., "AWQ", 2023, section 3.2, with a diagonal in the place of runs of the layer.

Errors: DataError where samples make the input of a layer infinite or NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from array_api_compat import array_namespace
from pydantic import Field

from qcompile.compiler.block_walker import BlockWalker, Visit
from qcompile.compiler.context import CompileContext
from qcompile.compiler.formats import Scales
from qcompile.compiler.graph import name_of
from qcompile.compiler.layer_rows import every_row, is_product
from qcompile.compiler.params import QuantParams, params_from_range, weight_range
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.weight_params import combined, squared_errors
from qcompile.errors import DataError
from qcompile.passes.quantize.weight_grids import Layer, layers_that_read_float, readers, requantize
from qcompile.runtime.device import fetch

Array = Any  # numpy.ndarray or torch.Tensor

_USUAL = tuple(np.linspace(1.1, 0.5, 25))
_POWERS_OF_TWO = (2.0, 0.5)
_OF_NVFP4 = tuple(np.linspace(1.6, 0.8, 33))
"""From six to four at the largest magnitude, and a little beyond, in steps of E4M3 scales."""


class SearchClip(Pass):
    """Choose the scales of weights by their error."""

    name: ClassVar[str] = "search-clip"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    measures: ClassVar[bool] = True

    power: float = Field(
        default=1.0, ge=0, le=1, description="p, how much the energy of inputs counts: 0.5 where `gptq` follows"
    )

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        waiting = {layer.unit.node: layer for layer in layers_that_read_float(model, context)}
        shared = readers(context)
        if context.calibration:
            names = {n for n, layer in waiting.items() if is_product(layer.node) and shared[layer.key[0]] == 1}
            walker = BlockWalker(model, context, context.calibration, method=self, in_waves=names, with_float=False)
            for visit in walker:
                wave = [waiting[n] for n in visit.block.nodes if n in names]
                if wave:
                    found = visit.once(partial(energies, wave, visit))
                    weighted = {name: energy**self.power for name, energy in found.items()}
                    requantize(wave, partial(_searched, weighted), context)
                    for layer in wave:
                        del waiting[layer.unit.node]
        requantize(list(waiting.values()), partial(_searched, {}), context)
        return False


def energies(layers: Sequence[Layer], visit: Visit) -> dict[str, Array]:
    """Sum of x_k^2 over all rows of all samples for each layer, [groups, K], by its name."""
    total: dict[str, Any] = {}
    for given in visit.inputs:
        for node in (layer.node for layer in layers):
            assert node.inputs[0] is not None
            x = every_row(node, given[name_of(node.inputs[0])])
            xp = array_namespace(x)
            seen = xp.square(xp.astype(x, xp.float64)).sum(axis=1)
            total[str(node.name)] = total.get(str(node.name), 0) + seen
    found = {name: fetch(energy) for name, energy in total.items()}
    for name, energy in found.items():
        if not np.isfinite(energy).all():
            raise DataError(
                f"the input of '{name}' is not finite on the calibration samples",
                hint="run the float model on them; a layer that reads infinity or NaN cannot be calibrated",
            )
    return found


def _searched(energies: Mapping[str, Array], layer: Layer, weight: Array, planned: QuantParams) -> QuantParams:
    importance, energy = None, energies.get(layer.unit.node)
    if energy is not None:
        importance = _of_weights(layer.node, energy, weight)
    elif layer.node.op_type != "Gather":
        importance = abs(weight)
    return searched(weight, planned, importance)


def _of_weights(node: ir.Node, energy: Array, weight: Array) -> Array:
    """The energy of what each weight is multiplied with, in a shape that broadcasts to that of the weight."""
    if node.op_type == "Conv":
        return np.repeat(energy, len(weight) // len(energy), axis=0).reshape(weight.shape)
    return energy if node.attributes.get_int("transB", 0) else energy.T


def searched(weight: Array, planned: QuantParams, importance: Array | None = None) -> QuantParams:
    """Parameters of the part of each range that gives the least sum of importance * (w - w~)^2; `planned` wins ties."""
    low, high = (fetch(bound) for bound in weight_range(weight, planned.spec))
    whole = planned.nested.scale if planned.nested and planned.spec.stored_scales is Scales.E4M3 else None

    def part(ratio: Array | float) -> QuantParams:
        return params_from_range(planned.spec, low * ratio, high * ratio, whole)

    least, chosen = squared_errors(weight, planned, importance), np.ones(planned.scale.shape)
    moved = np.zeros(planned.scale.shape, np.bool_)
    for ratio in _ratios(planned):
        error = squared_errors(weight, part(ratio), importance)
        better = error < least
        least, chosen, moved = np.where(better, error, least), np.where(better, ratio, chosen), moved | better
    return combined(moved, part(chosen), planned)


def _ratios(params: QuantParams) -> tuple[float, ...]:
    match params.spec.stored_scales:
        case Scales.POWER_OF_TWO:
            return _POWERS_OF_TWO
        case Scales.E4M3:
            return _OF_NVFP4
        case _:
            return _USUAL
