"""Ranges of activations from BatchNormalization alone: no samples, nothing runs.

    [min_c (m_c - 6 s_c), max_c (m_c + 6 s_c)], cut to the bounds of the Relu or Clip that writes the value.

Source: Nagel et al. 2019 (arXiv:1906.04721), section 5, "data-free" activation ranges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qcompile.compiler.graph import name_of
from qcompile.compiler.moments import Moments, clip_bounds, propagated
from qcompile.compiler.statistics import RANGE, StatisticsTable
from qcompile.compiler.units import elements

_DEVIATIONS = 6.0


def estimated(model: ir.Model, recorded: Mapping[str, Moments]) -> StatisticsTable:
    """RANGE of every value of the main graph whose moments are known; an empty table without any."""
    table, known = StatisticsTable(), propagated(model.graph, recorded)
    for node in model.graph:
        value = node.outputs[0]
        moments = known.get(name_of(value))
        if moments is None or moments.deviation is None:
            continue
        bounds, source = clip_bounds(node), node.inputs[0]
        before = known.get(name_of(source)) if bounds and source is not None else None
        spread = before if before is not None and before.deviation is not None else moments
        assert spread.deviation is not None
        low, high = bounds or (-math.inf, math.inf)
        least = max(low, float((spread.mean - _DEVIATIONS * spread.deviation).min()))
        most = min(high, float((spread.mean + _DEVIATIONS * spread.deviation).max()))
        magnitude = float(np.hypot(moments.mean, moments.deviation).mean()) * math.sqrt(2 / math.pi)
        count = max(elements(value), 1.0)
        table.samples = 1
        table.update(RANGE.kind, {name_of(value): np.array([least, most, magnitude * count, count])})
    return table
