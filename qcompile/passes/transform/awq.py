"""AWQ: channels that carry large activations get finer weights, by scales that fold into their producers.

    s_j = mean |X_j|^r,  at least 1e-4, divided by sqrt(max s * min s)
    r = argmin over 0, 1/20 .. 19/20 of the error of the block's output with weights Q(W * s) / s

Q is round-to-nearest on the grid that the recipe's placement gives each layer. r = 0 is Q(W) itself and wins
ties, so no block becomes worse. The scale of a layer's outputs leaves the codes of its blocks along the inputs
as they are: so the sites of a block are searched apart, in float otherwise, and one run of the rest of the
block behind the site weighs one r. s folds into what makes X (folding/); where nothing can take it, a Mul is
inserted if that lowers the block's error by `least_gain`. Source: Lin et al., "AWQ: Activation-aware Weight
Quantization", 2023 (arXiv:2306.00978), whose clipping is the pass search-clip here; the error is relative
(compiler/relative_error.py), since a mean square would be that of the few tokens with massive activations.

Errors: RecipeError where no placement of weights follows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.block_walker import BlockWalker, Visit
from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant
from qcompile.compiler.params import dequantize, quantize
from qcompile.compiler.passes import Fact, Pass, Phase, StatisticRequest
from qcompile.compiler.simulation import placement
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.statistics import StatisticsTable
from qcompile.compiler.weight_params import weight_params
from qcompile.compiler.weight_trials import errors_with
from qcompile.errors import RecipeError
from qcompile.passes.transform.folding.apply import apply
from qcompile.passes.transform.folding.ranges import mean_magnitudes, requests
from qcompile.passes.transform.folding.search import find_sites, insertable
from qcompile.passes.transform.folding.site import Factor, Refusal, Site, Vector, factors
from qcompile.runtime.device import Device

Array = Any  # numpy.ndarray or torch.Tensor

EXPONENTS = tuple(i / 20 for i in range(20))
_SMALLEST = 1e-4


class Awq(Pass):
    """Scale channels so that the weights that matter most are rounded most finely."""

    name: ClassVar[str] = "awq"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES, Fact.STATISTICS})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})
    float_equivalent: ClassVar[bool] = True
    measures: ClassVar[bool] = True

    samples: int = Field(
        default=2, ge=1, description="calibration samples, from the last, that the search runs: 512 tokens are enough"
    )
    least_gain: float = Field(
        default=1.0,
        ge=0,
        description="where a scale folds into nothing, the gain in dB of its block from which a Mul is inserted",
    )

    def statistics(self, model: ir.Model, context: CompileContext) -> Sequence[StatisticRequest]:
        sites, refused = find_sites(model)
        return requests(model, [*sites, *insertable(refused)])

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        units = placement(model, context).units.values()
        specs = {unit.node: unit.weight_spec for unit in units if unit.weight_spec is not None}
        if not specs:
            raise RecipeError(f"{self.name} finds no layer to quantize", hint="put place-weights behind it")
        sites, refused = find_sites(model)
        chosen = self.searched(model, context, [*sites, *insertable(refused)], specs)
        for site, choice in chosen.items():
            apply(model, site, choice.scales, self.name)
        context.notice(_summary(sites, refused, chosen))
        return bool(chosen)

    def searched(
        self, model: ir.Model, context: CompileContext, sites: Sequence[Site], specs: Mapping[str, QuantSpec]
    ) -> dict[Site, Choice]:
        """What each site takes; those that stay are missing."""
        assert context.calibration is not None
        readers = [{f.node for f in site.multiplied if f.weight and f.node in specs} for site in sites]
        chosen: dict[Site, Choice] = {}
        start = max(len(context.calibration) - self.samples, 0)
        for visit in BlockWalker(model, context, islice(iter(context.calibration), start, None), method=self):
            inside = [i for i, names in enumerate(readers) if names.intersection(visit.block.nodes)]
            readers = [set() if i in inside else names for i, names in enumerate(readers)]
            here = {i: sites[i] for i in inside}
            found = visit.once(partial(self.searched_block, visit, context.statistics, here, specs))
            for i in inside:
                if str(i) in found:
                    chosen[sites[i]] = Choice(float(found[str(i)][0]), found[str(i)][1:])
        return chosen

    def searched_block(
        self, visit: Visit, table: StatisticsTable, sites: Mapping[int, Site], specs: Mapping[str, QuantSpec]
    ) -> dict[str, Vector]:
        """For each site of a block that scaling helps: r, then its scales."""
        found: dict[str, Vector] = {}
        for i, site in sites.items():
            mean = mean_magnitudes(table, site)
            errors = search(visit, site, [scales(mean, r) for r in EXPONENTS], specs)
            best = int(np.argmin(errors))
            needed = errors[0] * (10 ** (-self.least_gain / 10) if site.inserted else 1)
            if errors[best] < needed:
                found[str(i)] = np.array([EXPONENTS[best], *scales(mean, EXPONENTS[best])])
        return found


@dataclass(frozen=True)
class Choice:
    """What one site takes."""

    exponent: float
    scales: Vector


def scales(mean: Vector, exponent: float) -> Vector:
    """s for channels of mean magnitudes `mean`: [scales]."""
    s = np.maximum(mean**exponent, _SMALLEST)
    return np.asarray(s / np.sqrt(s.max() * s.min()))


def search(visit: Visit, site: Site, candidates: Sequence[Vector], specs: Mapping[str, QuantSpec]) -> list[float]:
    """The error of the block's results with the site's layers quantized, for each candidate."""
    readers = {f.node: f for f in site.multiplied if f.weight and f.node in specs}
    found = {n: constant(node.inputs[1]) for node in visit.model.graph if (n := str(node.name)) in readers}
    weights = {n: visit.device.put(w) for n, w in found.items() if w is not None}
    rounded = (
        {n: _quantized(w, readers[n], vector, specs[n], visit.device) for n, w in weights.items()}
        for vector in candidates
    )
    return errors_with(visit, weights, rounded)


def _quantized(weight: Array, factor: Factor, vector: Vector, spec: QuantSpec, device: Device) -> Array:
    """Q(W * s) / s: what the layer computes with, its inputs unscaled."""
    by = device.put(factors(factor.groups, vector).astype(np.float32))
    scaled = weight * by
    params = weight_params(scaled, spec)
    return dequantize(quantize(scaled, params), params) / by


def _summary(sites: Sequence[Site], refused: Sequence[Refusal], chosen: Mapping[Site, Choice]) -> str:
    """How many sites of each family are scaled, with which exponents, and where the scale costs a Mul."""
    inserted = [r.explicit for r in refused if r.explicit in chosen]
    parts = []
    for family in dict.fromkeys(s.family for s in [*sites, *inserted]):
        members = [s for s in [*sites, *inserted] if s.family is family]
        taken = Counter(chosen[s].exponent for s in members if s in chosen)
        texts = [f"r {exponent:g} at {n}" for exponent, n in sorted(taken.items())]
        rest = len(members) - taken.total()
        parts.append(f"{family}: " + ", ".join([*texts, *([f"not at {rest}"] if rest else [])]))
    if len(refused) > len(inserted):
        parts.append(f"folds nowhere, and a Mul is not worth it: {len(refused) - len(inserted)}")
    return "awq: " + ("; ".join(parts) or "no linear layers")
