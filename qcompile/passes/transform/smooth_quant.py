"""SmoothQuant: the scale of outlier channels moves from activations, where it costs bits, into weights.

    x'_j = x_j / s_j,   W'_j = W_j * s_j,   s_j = max |X_j|^a / max |W_j|^(1 - a)
    a = argmin over candidates of the error of the block's output after quantization, for each site apart

max |W_j| is over all weights that read channel j. s folds into what makes x (folding/); where nothing can
take it, a Mul is inserted if that makes the block's error smaller by `least_gain`, since it costs time.
Source: Xiao et al., "SmoothQuant", 2022 (arXiv:2211.10438), with one `a` for each site, found by running
the block's quantized copy. Not smoothing is a candidate and wins ties, so no block becomes worse; nor may a
candidate leave one more layer float, which would be the easiest way to a small error.

Errors: none of its own; a site that cannot be folded is left alone, and a notice says why.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.block_walker import BlockWalker, Visit
from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import name_of, nodes
from qcompile.compiler.passes import Fact, Pass, Phase, StatisticRequest
from qcompile.compiler.relative_error import relative_error
from qcompile.compiler.simulation import quantized_copy
from qcompile.compiler.statistics import StatisticsTable
from qcompile.passes.transform.folding.apply import apply, largest
from qcompile.passes.transform.folding.ranges import magnitudes, requests, scaled
from qcompile.passes.transform.folding.rules.linear import channel_axis
from qcompile.passes.transform.folding.search import find_sites, insertable
from qcompile.passes.transform.folding.site import Refusal, Site, Vector

CANDIDATES = (0.3, 0.45, 0.6, 0.75)

_AS_GOOD = 1.05
"""The smallest alpha whose error is within this factor of the least is taken: the more channels reach the edge of the
range, the more of them leave it on data unlike the samples."""


_SMALLEST = 1e-5


class SmoothQuant(Pass):
    """Scale channels so that activations and weights are equally hard to quantize."""

    name: ClassVar[str] = "smooth-quant"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES, Fact.STATISTICS})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})
    float_equivalent: ClassVar[bool] = True
    measures: ClassVar[bool] = True

    alpha: Literal["auto"] | float = Field(
        default="auto",
        description="how much of the outliers moves into the weights, 0 to 1; `auto` searches it for each site",
    )
    samples: int = Field(default=4, ge=1, description="calibration samples, from the last, that the search runs")
    least_gain: float = Field(
        default=1.0,
        ge=0,
        description="where a scale folds into nothing, the gain in dB of its block from which a Mul is inserted",
    )

    def statistics(self, model: ir.Model, context: CompileContext) -> Sequence[StatisticRequest]:
        sites, refused = find_sites(model)
        return requests(model, [*sites, *insertable(refused)])

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        sites, refused = find_sites(model)
        if isinstance(self.alpha, float):
            chosen = {}
            for site in sites:
                chosen[site] = Choice(self.alpha, smoothing(model, context.statistics, site, self.alpha))
                apply(model, site, chosen[site].scales, self.name)
        else:
            chosen = self.searched(model, context, [*sites, *insertable(refused)])
            for site, choice in chosen.items():
                apply(model, site, choice.scales, self.name)
        context.notice(_summary(sites, refused, chosen))
        return bool(chosen)

    def searched(self, model: ir.Model, context: CompileContext, sites: list[Site]) -> dict[Site, Choice]:
        """What each site takes, in the order in which it is to be folded; sites that stay are missing."""
        assert context.calibration is not None
        readers = [{f.node for f in site.multiplied if f.weight} for site in sites]
        chosen: dict[Site, Choice] = {}
        start = max(len(context.calibration) - self.samples, 0)
        samples = itertools.islice(iter(context.calibration), start, None)
        for visit in BlockWalker(model, context, samples, method=self):
            inside = [i for i, names in enumerate(readers) if names.intersection(visit.block.nodes)]
            readers = [set() if i in inside else names for i, names in enumerate(readers)]
            found = visit.once(partial(self.searched_block, visit, context, model, {i: sites[i] for i in inside}))
            for i in inside:
                if str(i) in found:
                    chosen[sites[i]] = Choice(float(found[str(i)][0]), found[str(i)][1:])
        return chosen

    def searched_block(
        self, visit: Visit, context: CompileContext, model: ir.Model, sites: dict[int, Site]
    ) -> dict[str, Vector]:
        """For each site of a block that smoothing helps: alpha, then its scales."""
        found: dict[str, Vector] = {}
        if not sites:
            return found
        now = _Trial(visit, context, visit.model, context.statistics)
        for i, site in sites.items():
            needed = now.error * (10 ** (-self.least_gain / 10) if site.inserted else 1)
            trials = {}
            for alpha in CANDIDATES:
                scales = smoothing(now.model, now.table, site, alpha, model)
                trials[alpha] = scales, now.folded(site, scales, self.name)
            trials = {a: t for a, t in trials.items() if t[1].float_layers <= now.float_layers}
            least = min((trial.error for _, trial in trials.values()), default=0.0)
            for alpha, (scales, trial) in trials.items():
                if trial.error < needed and trial.error <= _AS_GOOD * least:
                    now, found[str(i)] = trial, np.array([alpha, *scales])
                    break
        return found


@dataclass(frozen=True)
class Choice:
    """What one site takes."""

    alpha: float
    scales: Vector


def smoothing(
    model: ir.Model, table: StatisticsTable, site: Site, alpha: float, whole: ir.Model | None = None
) -> Vector:
    """s for one site, shape [site.scales]; 1 for channels that were never seen, or that no weight reads.

    Args:
        whole: where `model` is a block, the model that holds the weights outside it that read the same channels.
    """
    x = magnitudes(table, site)
    weights = tuple(f for f in site.multiplied if f.weight)
    w = largest(model, weights, site.scales)
    if whole is not None:
        inside = {node.name for node in nodes(model)}
        w = np.maximum(w, largest(whole, tuple(f for f in weights if f.node not in inside), site.scales))
    s = np.maximum(x, _SMALLEST) ** alpha / np.maximum(w, _SMALLEST) ** (1 - alpha)
    return np.where((x > 0) & (w > 0), np.maximum(s, _SMALLEST), 1.0)


@dataclass(frozen=True)
class _Trial:
    """A block with some sites folded, and the error of its outputs after quantization."""

    visit: Visit
    context: CompileContext
    model: ir.Model
    table: StatisticsTable

    @cached_property
    def copy(self) -> ir.Model:
        return quantized_copy(self.model, self.context, self.table)

    @cached_property
    def error(self) -> float:
        names = [name_of(v) for v in self.visit.model.graph.outputs if v.dtype is None or v.dtype.is_floating_point()]
        outputs = self.visit.run(self.copy, self.visit.float_inputs)
        return relative_error(self.visit.float_outputs, outputs, names)

    @cached_property
    def float_layers(self) -> int:
        """Linear layers that the grid of their input does not serve: a scale that adds one is no gain."""
        return sum(channel_axis(node) is not None for node in nodes(self.copy))

    def folded(self, site: Site, scales: Vector, made_by: str) -> _Trial:
        model = self.model.clone()
        made = apply(model, site, scales, made_by)
        return replace(self, model=model, table=scaled(self.table, site, scales, made))


def _summary(sites: list[Site], refused: list[Refusal], chosen: dict[Site, Choice]) -> str:
    """How many sites of each family took which alpha, and why the others are none."""
    parts = []
    inserted = [r.explicit for r in refused if r.explicit in chosen]
    for family in dict.fromkeys(s.family for s in [*sites, *inserted]):
        members = [s for s in [*sites, *inserted] if s.family is family]
        alphas = Counter(chosen[s].alpha for s in members if s in chosen)
        texts = [f"alpha {alpha:g} at {n}" for alpha, n in sorted(alphas.items())]
        rest = len(members) - alphas.total()
        parts.append(f"{family}: " + ", ".join([*texts, *([f"not at {rest}"] if rest else [])]))
    folds_nowhere = len(refused) - len(inserted)
    if folds_nowhere:
        first = next(r for r in refused if r.explicit not in chosen)
        more = f" (and {folds_nowhere - 1} more)" if folds_nowhere > 1 else ""
        parts.append(f"folds nowhere: the scale of '{first.value}' {first.reason}{more}")
    return "smooth-quant: " + ("; ".join(parts) or "no linear layers")
