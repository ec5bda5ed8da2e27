"""Bits where they buy most: the layers that hurt most in few bits get 8, as far as an average of `bits` allows.

    gain_i = error of the block's results with the weights of layer i rounded to nearest, all else float
    raise layers in the order of gain_i / added bits, while the average over all linear layers stays within `bits`

The average counts scales and zero points; embedding and head are left out, and so is what kernels fill up the last
block of a row with. That the errors of layers add up is an assumption, good for ranking them: in SmolLM2-135M the 3 %
of weights that make values for attention carry a third of all gains. Source: the ranking by sensitivity per bit of
Dong et al., "HAWQ-V2", 2020, with the error of the block in the place of the trace of its Hessian.

Errors: DataError without samples; RecipeError where the placed formats already take more than `bits`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.block_walker import BlockWalker, Visit
from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant, graphs
from qcompile.compiler.layer_rows import is_product
from qcompile.compiler.params import dequantize, quantize
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import Form, QuantPlan, Unit
from qcompile.compiler.roles import Role, roles
from qcompile.compiler.specs import PerBlock, QuantSpec
from qcompile.compiler.units import Candidate, candidates
from qcompile.compiler.weight_params import bits_per_weight, weight_params
from qcompile.compiler.weight_trials import errors_with
from qcompile.errors import DataError, RecipeError
from qcompile.passes.quantize.place_weights import stored_unit
from qcompile.passes.quantize.weight_options import Wanted

Array = npt.NDArray[Any]


class SpendBits(Pass):
    """Raise the most sensitive layers to 8-bit weights."""

    name: ClassVar[str] = "spend-bits"
    phase: ClassVar[Phase] = Phase.QUANTIZE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.PLACEMENT})
    measures: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = True

    bits: float = Field(default=4.6, gt=0, description="bits of a weight on average, scales and zero points included")
    format: Literal["int8", "uint8"] = Field(default="int8", description="format of the raised layers")
    samples: int = Field(default=2, ge=1, description="calibration samples, from the last, that measure the errors")

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        if not context.calibration:
            raise DataError(
                "no calibration samples",
                hint=f"give representative inputs with --calib, or take {self.name} out of the recipe",
            )
        layers = self.layers(model, context)
        start = max(len(context.calibration) - self.samples, 0)
        gains: dict[str, float] = {}
        in_float = replace(context, plan=QuantPlan())
        for visit in BlockWalker(model, in_float, islice(iter(context.calibration), start, None), method=self):
            inside = [layers[n] for n in visit.block.nodes if n in layers and layers[n].wider]
            if inside:
                found = visit.once(partial(_gains, inside, visit))
                gains |= {layer.name: float(found[layer.name]) for layer in inside}
        raised = choose(layers.values(), gains, self.bits)
        for name in raised:
            context.plan.units[name] = layers[name].wider or layers[name].unit
        size = sum(layer.size for layer in layers.values())
        spent = sum(layer.size * (layer.wide_bits if name in raised else layer.bits) for name, layer in layers.items())
        share = sum(layers[name].size for name in raised) / max(size, 1)
        context.notice(
            f"{self.name}: {len(raised)} of {len(layers)} linear layers get {self.format} weights, {share:.1%} of all "
            f"weights; {spent / max(size, 1):.2f} bits a weight on average"
        )
        return False

    def layers(self, model: ir.Model, context: CompileContext) -> dict[str, Layer]:
        """The linear layers with codes, embedding and head left out."""
        known, units = roles(model), context.plan.units
        found: dict[str, Layer] = {}
        for graph in graphs(model):
            for candidate in candidates(graph, context.target):
                node, name = candidate.node, str(candidate.node.name)
                unit = units.get(name)
                if (
                    unit is None
                    or unit.weight_spec is None
                    or known.get(name) in (Role.EMBEDDING, Role.HEAD)
                    or node.op_type not in ("MatMul", "Gemm", "Conv")
                    or not is_product(node)
                ):
                    continue
                weight = constant(node.inputs[1])
                assert weight is not None
                wider = self.wider(candidate, unit, context) if unit.weight_spec.format.bits < 8 else None
                bits = _bits(weight, unit)
                wide_bits = _bits(weight, wider) if wider else bits
                found[name] = Layer(name, node, unit, weight.size, bits, wider, wide_bits)
        return found

    def wider(self, candidate: Candidate, unit: Unit, context: CompileContext) -> Unit | None:
        """The unit in the wider format, in blocks of the same size where the target has them."""
        grain = unit.weight_spec.granularity if unit.weight_spec else None
        activations: Literal["float", "int8"] = "int8" if unit.form is Form.BLOCKS else "float"
        for size in ([grain.size] if isinstance(grain, PerBlock) else []) + [None]:
            wanted = Wanted("format", self.format, block_size=size, activations=activations)  # type: ignore[arg-type]
            wider, _ = stored_unit(candidate, wanted, context)
            if wider is not None:
                return wider
        return None


@dataclass(frozen=True)
class Layer:
    """One linear layer.

    Attributes:
        size: how many weights it has.
        bits, wide_bits: of each of them, as placed and raised.
        wider: its unit in the wider format; None where that is no choice.
    """

    name: str
    node: ir.Node
    unit: Unit
    size: int
    bits: float
    wider: Unit | None
    wide_bits: float


def choose(layers: Iterable[Layer], gains: Mapping[str, float], bits: float) -> set[str]:
    """The layers to raise, by name.

    Raises:
        RecipeError: the layers take more than `bits` as they are.
    """
    everything = list(layers)
    left = sum(layer.size * (bits - layer.bits) for layer in everything)
    if left < 0:
        spent = sum(layer.size * layer.bits for layer in everything) / sum(layer.size for layer in everything)
        raise RecipeError(
            f"the weights take {spent:.2f} bits on average before any is raised",
            where="spend-bits.bits",
            hint="give more bits, or place the weights in longer blocks",
        )
    added = {x.name: x.size * (x.wide_bits - x.bits) for x in everything if x.name in gains}
    raised = set()
    for name in sorted(added, key=lambda name: -gains[name] / added[name]):
        if added[name] <= left and gains[name] > 0:
            left -= added[name]
            raised.add(name)
    return raised


def _gains(layers: Iterable[Layer], visit: Visit) -> dict[str, Array]:
    """The error that each layer alone adds to the results of the block."""
    found = {}
    for layer in layers:
        weight = constant(layer.node.inputs[1])
        assert weight is not None
        assert layer.unit.weight_spec is not None
        rounded = _rounded(weight, layer.unit.weight_spec)
        [error] = errors_with(visit, [layer.name], [{layer.name: rounded}])
        found[layer.name] = np.asarray(error)
    return found


def _bits(weight: Array, unit: Unit) -> float:
    assert unit.weight_spec is not None
    return bits_per_weight(weight_params(weight, unit.weight_spec), weight.shape)


def _rounded(weight: Array, spec: QuantSpec) -> Array:
    params = weight_params(weight, spec)
    return np.asarray(dequantize(quantize(weight, params), params))
