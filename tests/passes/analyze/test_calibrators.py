"""Calibrators against closed forms, and against plain implementations of their definitions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from scipy.stats import entropy, norm

from qcompile.compiler.formats import FP8_E4M3, INT8, INT16, UINT8, NumericFormat
from qcompile.compiler.histogram import BINS, HALF, HELD_OUT, HISTOGRAM, histogram_of
from qcompile.compiler.params import dequantize, params_from_range, quantize
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.statistics import RANGE, Clip, StatisticsTable
from qcompile.passes.analyze.calibrators import calibrator
from qcompile.passes.analyze.calibrators.entropy import candidates, divergences
from qcompile.passes.analyze.calibrators.moving_average import AVERAGES
from qcompile.passes.analyze.calibrators.rounding import grid_of, noise

Array = npt.NDArray[Any]
METHODS = ("min-max", "moving-average", "percentile", "entropy", "mse", "auto")
SPECS = (QuantSpec(UINT8), QuantSpec(INT8), QuantSpec(INT8, symmetric=True), QuantSpec(INT16), QuantSpec(FP8_E4M3))
RANDOM = np.random.default_rng(0)


def symmetric(bits: int) -> QuantSpec:
    """The codes -q ... q."""
    highest = 2 ** (bits - 1) - 1
    return QuantSpec(NumericFormat(f"int{bits}", ir.DataType.INT8, -highest, highest, 10), symmetric=True)


def histogram(x: Array) -> Array:
    largest = np.abs(x).max(initial=0.0)
    exponent = int(np.frexp(largest)[1]) - HALF.bit_length() + 1 if largest else -126
    return np.concatenate([[exponent], np.bincount(np.floor(x * 2.0**-exponent).astype(int) + HALF, minlength=BINS)])


def table_of(*samples: Array) -> StatisticsTable:
    """What calibration knows of a tensor `x` after these samples."""
    x = np.concatenate([s.reshape(-1) for s in samples]).astype(np.float64)
    table = StatisticsTable(len(samples))
    table.update(RANGE.kind, {"x": np.array([x.min(), x.max(), np.abs(x).sum(), x.size])})
    table.update(HISTOGRAM.kind, {"x": histogram(x)})
    judges = [s.reshape(-1) for s in samples[3::4]]
    table.update(HELD_OUT.kind, {"x": histogram(np.concatenate(judges)) if judges else HISTOGRAM.identity()})
    average = AVERAGES.identity()
    for s in samples:
        average = AVERAGES.merge(average, AVERAGES.lift(np.array([[s.min(), s.max()]]))[0])
    table.update(AVERAGES.kind, {"x": average})
    return table


def clip(method: str, spec: QuantSpec, *samples: Array, percentile: float = 99.999) -> Clip:
    table = table_of(*samples)
    table.calibrator = calibrator(method, percentile)
    found = table.clip_of("x", spec)
    assert found is not None
    return found


@pytest.mark.parametrize(("bits", "optimal"), [(2, 1.23), (3, 1.95), (4, 2.48), (8, 3.90)])
def test_mse_finds_the_optimal_clips_of_a_gaussian(bits: int, optimal: float) -> None:
    x = norm.ppf((np.arange(2_000_000) + 0.5) / 2_000_000)
    assert clip("mse", symmetric(bits), x).high == pytest.approx(optimal, abs=0.03)


@pytest.mark.parametrize("spec", [symmetric(3), QuantSpec(INT8), QuantSpec(UINT8), QuantSpec(FP8_E4M3)], ids=str)
def test_the_noise_model_is_what_rounding_does(spec: QuantSpec) -> None:
    """Values spread evenly over each bin, rounded for real."""
    edges = np.linspace(-1.5, 2.0, 15)
    counts = RANDOM.integers(0, 50, 14).astype(np.float64)
    low, high = np.array([-1.1, -1.5, -0.4]), np.array([1.3, 2.0, 0.9])
    said = noise(spec, edges, counts, low, high)
    for k in range(3):
        params = params_from_range(spec, low[k], high[k])
        total = 0.0
        for n, (a, b) in zip(counts, pairwise(edges), strict=True):
            x = a + (b - a) * (np.arange(20_000) + 0.5) / 20_000
            if spec.format.is_integer:
                shown = dequantize(quantize(x, params), params).astype(np.float64)
            else:
                limit = float(params.scale) * spec.format.high
                codes = (np.clip(x, -limit, limit) / float(params.scale)).astype(spec.format.dtype.numpy())
                shown = codes.astype(np.float64) * float(params.scale)
            total += n * float(np.mean((x - shown) ** 2))
        assert said[k] == pytest.approx(total, rel=2e-3)


@pytest.mark.parametrize("name", ["gauss", "laplace", "relu", "silu", "shifted"])
@pytest.mark.parametrize("spec", [symmetric(4), QuantSpec(UINT8), QuantSpec(FP8_E4M3)], ids=str)
def test_mse_against_brute_force(name: str, spec: QuantSpec) -> None:
    normal = RANDOM.standard_normal(60_000)
    x = {
        "gauss": normal,
        "laplace": RANDOM.laplace(size=60_000),
        "relu": np.maximum(normal, 0),
        "silu": 3 * normal / (1 + np.exp(-3 * normal)),
        "shifted": normal + 2,
    }[name]
    found, table = clip("mse", spec, x), table_of(x)
    counted = histogram_of(table, "x")
    assert counted is not None
    edges, counts = counted.occupied()
    if spec.symmetric or not spec.format.is_integer:
        highs = np.linspace(0, np.abs(x).max(), 1500)[1:]
        lows = -highs
    else:
        grids = np.meshgrid(np.linspace(min(x.min(), 0.0), 0, 60), np.linspace(0, x.max(), 80)[1:])
        lows, highs = (g.reshape(-1) for g in grids)
    best = min(
        noise(spec, edges, counts, a, b).min()
        for a, b in zip(*(np.array_split(v, 40) for v in (lows, highs)), strict=True)
    )
    limit = max(-found.low, found.high)
    one = (-limit, limit) if spec.symmetric or not spec.format.is_integer else (found.low, found.high)
    [ours] = noise(spec, edges, counts, np.array(one[:1]), np.array(one[1:]))
    assert ours <= best * 1.002


def test_moving_average_is_the_recurrence_however_it_is_merged() -> None:
    bounds = RANDOM.standard_normal((50, 2)).cumsum(axis=0)
    bounds.sort(axis=1)
    low, high = bounds[0]
    for a, b in bounds[1:]:
        low, high = 0.99 * low + 0.01 * a, 0.99 * high + 0.01 * b
    found = clip("moving-average", QuantSpec(INT8), *(np.array(b) for b in bounds))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    each = AVERAGES.lift(bounds)
    for cut in (0, 1, 17, 50):
        parts = []
        for part in (each[:cut], each[cut:]):
            merged = AVERAGES.identity()
            for vector in part:
                merged = AVERAGES.merge(merged, vector)
            parts.append(merged)
        decay, a, first, _, _ = AVERAGES.merge(*parts)
        assert a + decay * first == pytest.approx(low, rel=1e-12)
    absent = AVERAGES.lift(np.array([[np.inf, -np.inf]]))[0]
    np.testing.assert_array_equal(AVERAGES.merge(each[0], absent), each[0])
    np.testing.assert_array_equal(AVERAGES.merge(absent, each[0]), each[0])


@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9, 100.0])
def test_percentile_is_numpys_within_a_bin(percent: float) -> None:
    x = RANDOM.standard_normal(300_000) + 0.5
    width = histogram_of(table_of(x), "x").width  # type: ignore[union-attr]
    found = clip("percentile", QuantSpec(INT8), x, percentile=percent)
    expected = np.percentile(x, [(100 - percent) / 2, 100 - (100 - percent) / 2])
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=width)
    even = clip("percentile", QuantSpec(INT8, symmetric=True), x, percentile=percent)
    assert even.high == pytest.approx(min(np.percentile(np.abs(x), percent), x.max()), abs=width)


def plain_divergence(counts: Array, start: int, stop: int, levels: Array) -> float:
    """KL(P || Q) of one window, bin by bin. `levels`: the level of each bin."""
    inner = counts[start:stop].astype(float)
    p = inner.copy()
    p[0] += counts[:start].sum()
    p[-1] += counts[stop:].sum()
    q = np.zeros_like(inner)
    for level in set(levels[start:stop]):
        of_level = (levels[start:stop] == level) & (inner > 0)
        if of_level.any():
            q[of_level] = inner[levels[start:stop] == level].sum() / of_level.sum()
    return float(entropy(p, q)) if q.any() else np.inf


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("first", [-40, -7, 0])
def test_entropy_against_a_plain_implementation(bits: int, asymmetric: bool, first: int) -> None:
    spec = symmetric(bits)
    if asymmetric:
        spec = QuantSpec(NumericFormat("uint", ir.DataType.UINT8, 0, 2**bits - 1, 10))
    counts = RANDOM.poisson(100 * np.exp(-np.abs(np.arange(90) + first + 0.5) / 12)).astype(np.float64)
    windows = candidates(counts.size, first, grid_of(spec.format).values.size)
    assert len(windows) > 30
    width = 2.0**-5
    said = divergences(spec, width, counts, first, windows)
    for (start, stop), ours in zip(windows, said, strict=True):
        params = params_from_range(spec, (start + first) * width, (stop + first) * width)
        thresholds = (np.arange(spec.format.low, spec.format.high) + 0.5 - int(params.zero_point)) * float(params.scale)
        bounds = np.rint(thresholds / width) - first
        levels = np.searchsorted(bounds, np.arange(90), side="right")
        assert ours == pytest.approx(plain_divergence(counts, start, stop, levels), rel=1e-9, abs=1e-12)


def test_zeros_do_not_decide_the_entropy() -> None:
    """A Relu makes as many zeros as it likes, which any grid holds exactly."""
    x = np.maximum(RANDOM.standard_normal(200_000), 0)
    few, many = (clip("entropy", QuantSpec(UINT8), np.append(x, np.zeros(n))) for n in (0, 5_000_000))
    assert many == few
    assert few.high > 3.5, "the levels of all 8 bits lie on the side where the values are"


def test_auto_is_never_worse_than_the_others_on_held_out_samples() -> None:
    outliers = RANDOM.standard_normal((8, 5000))
    outliers[:, 0] = 40
    for samples in (outliers, RANDOM.uniform(-1, 1, (8, 5000)), RANDOM.laplace(size=(8, 5000))):
        for spec in SPECS:
            chosen = clip("auto", spec, *samples)
            assert chosen.method in METHODS
            assert chosen == clip(chosen.method, spec, *samples), "the clip comes from all samples"
    assert clip("auto", QuantSpec(UINT8), *RANDOM.uniform(-1, 1, (8, 5000))).high > 0.99
    assert clip("auto", symmetric(4), *RANDOM.standard_normal((8, 5000))).high < 3.2


DIFFICULT = {
    "constant": np.full(10, 3.0),
    "negative constant": np.full(10, -3.0),
    "zeros": np.zeros(10),
    "one value": np.array([0.7]),
    "two values": np.array([-1.0, 1.0]),
    "denormal": np.array([1e-40, -1e-42]),
    "a mask": np.array([0.0] * 50 + [-3.4e38]),
    "mask of -1e9": np.array([0.0, 1.0] * 50 + [-1e9]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", DIFFICULT)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_difficult_tensors(method: str, case: str, spec: QuantSpec) -> None:
    x = DIFFICULT[case]
    found = clip(method, spec, x)
    assert x.min() <= found.low
    assert found.high <= x.max()
    assert np.isfinite(params_from_range(spec, found.low, found.high).scale)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_histogram_the_range_is_taken(method: str) -> None:
    table = StatisticsTable(1, {RANGE.kind: {"x": np.array([-1.0, 2.0, 3.0, 4.0])}}, calibrator(method, 99.0))
    found = table.clip_of("x", QuantSpec(INT8))
    assert found == Clip(-1.0, 2.0, "min-max")
    assert table.clip_of("unknown", QuantSpec(INT8)) is None
