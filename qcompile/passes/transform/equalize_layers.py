"""Cross-layer equalization: channels of two layers in a row get the same range in both.

    r1_i = max |W1_i|,   r2_i = max |W2_i|      rows of the first weight, columns of the second
    W1_i / s_i,  b_i / s_i,  W2_i * s_i,        s_i = sqrt(r1_i / r2_i),   so both become sqrt(r1_i r2_i)

repeated until nothing moves, since a layer in the middle of a chain is the second of one pair and the first of
the next. Relu passes a positive scale; a Clip with an upper bound does not (`relax-clip`). What one site needs,
and residual sums that tie channels together, is found by passes/transform/folding.
Source: Nagel et al. 2019 (arXiv:1906.04721), section 4.1, where s is defined the other way round.

Errors: none of its own.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from pydantic import Field

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import name_of
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.transform.folding.apply import apply, largest
from qcompile.passes.transform.folding.search import find_sites
from qcompile.passes.transform.folding.site import Family, Site, factors

Vector = npt.NDArray[np.float64]

_SETTLED = 1e-4
"""Largest |log s| of a round after which none follows."""

_LARGEST_SCALE = 1e4
"""A channel that one of the layers hardly uses is not blown up further in the other."""


class EqualizeLayers(Pass):
    """Balance the ranges of weights between layers in a row."""

    name: ClassVar[str] = "equalize-layers"
    phase: ClassVar[Phase] = Phase.TRANSFORM
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    invalidates: ClassVar[frozenset[Fact]] = frozenset({Fact.STATISTICS})
    float_equivalent: ClassVar[bool] = True

    rounds: int = Field(default=50, ge=1, description="most rounds over all pairs of layers")

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        sites = [s for s in find_sites(model)[0] if s.family in (Family.HOMOGENEOUS, Family.LINEAR)]
        totals = [np.ones(site.scales) for site in sites]
        trial = model.clone()
        for _ in range(self.rounds):
            moved = 0.0
            for site, total in zip(sites, totals, strict=True):
                scales = _balancing(trial, site)
                scales = np.clip(total * scales, 1 / _LARGEST_SCALE, _LARGEST_SCALE) / total
                apply(trial, site, scales, self.name)
                total *= scales
                moved = max(moved, float(np.abs(np.log(scales)).max()))
            if moved < _SETTLED:
                break
        worth = [(s, t) for s, t in zip(sites, totals, strict=True) if np.abs(np.log(t)).max() > _SETTLED]
        for site, total in worth:
            apply(model, site, total, self.name)
        _rename(model, worth, context)
        return bool(worth)


def _balancing(model: ir.Model, site: Site) -> Vector:
    """s of one site; 1 for channels that one of its ends does not weigh."""
    first, second = (
        largest(model, tuple(f for f in taken if f.weight), site.scales) for taken in (site.divided, site.multiplied)
    )
    known = (first > 0) & (second > 0)
    return np.sqrt(np.where(known, first, 1.0) / np.where(known, second, 1.0))


def _rename(model: ir.Model, applied: list[tuple[Site, Vector]], context: CompileContext) -> None:
    """Values that were scaled get names of their own: a name stands for the same values in both models."""
    found = {name_of(v): v for node in model.graph.all_nodes() for v in node.outputs if v.name}
    names = Names(model)
    scaled: dict[str, Vector] = {}
    for site, scales in applied:
        for name, groups in site.values.items():
            scaled[name] = scaled.get(name, np.ones(1)) * factors(groups, 1 / scales)
    for name, vector in scaled.items():
        moments = context.moments.pop(name, None)
        if name not in found:
            continue
        found[name].name = names.fresh(f"{name}_equalized")
        if moments is not None:
            per_channel = np.broadcast_to(vector.reshape(-1), moments.mean.shape)
            context.moments[name_of(found[name])] = moments.affine(per_channel, 0.0)
