"""Statistics of a model in which a site has been folded, without another calibration run.

low'_j = low_j / s_j,  high'_j = high_j / s_j   for each channel j; the tensor's range is their hull.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qcompile.compiler.passes import StatisticRequest
from qcompile.compiler.statistics import RANGE, ChannelRanges, Channels, StatisticsTable
from qcompile.passes.transform.folding.site import Site, Vector, factors


def requests(model: ir.Model, sites: list[Site]) -> list[StatisticRequest]:
    """What `magnitudes` and `scaled` want to know of `sites`."""
    return [StatisticRequest(name, Channels(axis)) for site in sites for name, axis in site.axes.items()]


def magnitudes(table: StatisticsTable, site: Site) -> Vector:
    """max |x| over the channels of the site's inputs that belong to each scale; 0 where none was observed."""
    result = np.zeros(site.scales + 1)
    for name, groups in site.inputs.items():
        seen = table.channels_of(name, site.axes[name])
        if seen is not None:
            np.maximum.at(result, groups, np.maximum(np.abs(seen.low), np.abs(seen.high)))
    return result[:-1]


def mean_magnitudes(table: StatisticsTable, site: Site) -> Vector:
    """mean |x| over the channels of the site's inputs that belong to each scale; 0 where none was observed."""
    total, channels = np.zeros(site.scales + 1), np.zeros(site.scales + 1)
    for name, groups in site.inputs.items():
        seen = table.channels_of(name, site.axes[name])
        if seen is not None:
            np.add.at(total, groups, seen.mean_magnitude)
            np.add.at(channels, groups, 1)
    return (total / np.maximum(channels, 1))[:-1]


def scaled(table: StatisticsTable, site: Site, scales: Vector, made: Mapping[str, str]) -> StatisticsTable:
    """A copy of `table` as if `scales` were folded into `site`; `made` is what `apply` returned."""
    changed = dict.fromkeys([*site.values, *made])
    copy = table.without([made.get(name, name) for name in changed])
    for name in changed:
        _scale(copy, table, name, made.get(name, name), site, 1 / scales)
    return copy


def _scale(copy: StatisticsTable, table: StatisticsTable, old: str, new: str, site: Site, inverse: Vector) -> None:
    known = table.vectors.get(RANGE.kind, {}).get(old)
    seen = table.channels_of(old, site.axes[old]) if old in site.axes else None
    if seen is not None:
        _, _, _, count = known if known is not None else (0, 0, 0, seen.count * seen.low.size)
        by = factors(site.inputs[old], inverse)
        moved = ChannelRanges(seen.low * by, seen.high * by, seen.mean * by, seen.mean_magnitude * by, seen.count)
        magnitude = float(moved.mean_magnitude.mean()) * count
        copy.update(RANGE.kind, {new: np.array([moved.low.min(), moved.high.max(), magnitude, count])})
        copy.update(Channels(site.axes[old]).kind, {new: _vector(moved)})
    elif known is not None:
        low, high, magnitude, count = known
        by = factors(site.values[old] if old in site.values else site.inputs[old], inverse)
        most = float(by.max())
        copy.update(RANGE.kind, {new: np.array([low * most, high * most, magnitude * float(by.mean()), count])})


def _vector(ranges: ChannelRanges) -> Vector:
    total, elements = ranges.count, ranges.count * ranges.low.size
    return np.concatenate(
        [ranges.low, ranges.high, ranges.mean * total, ranges.mean_magnitude * total, np.array([elements])]
    )
