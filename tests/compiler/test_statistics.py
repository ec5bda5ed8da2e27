"""Statistics are monoids, and the graph operators they name observe and merge them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qcompile.compiler.statistics import RANGE, Channels, StatisticsTable, Vector

chunks = arrays.arrays(np.float32, st.integers(1, 20), elements=st.floats(-100, 100, width=16))
_OBSERVE: dict[str, Any] = {
    "ReduceMin": np.min,
    "ReduceMax": np.max,
    "ReduceL1": lambda x: np.abs(x).astype(np.float64).sum(),
    "Size": np.size,
}


def observe(x: npt.NDArray[np.float32]) -> Vector:
    return np.array([_OBSERVE[c.observe](x) for c in RANGE.components], np.float64)


@given(a=chunks, b=chunks)
def test_merging_is_observing_both(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> None:
    np.testing.assert_allclose(RANGE.merge(observe(a), observe(b)), observe(np.concatenate([a, b])), rtol=1e-12)


@given(a=chunks, b=chunks, c=chunks)
def test_merging_is_associative_and_commutative(
    a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], c: npt.NDArray[np.float32]
) -> None:
    x, y, z = map(observe, (a, b, c))
    np.testing.assert_allclose(RANGE.merge(RANGE.merge(x, y), z), RANGE.merge(x, RANGE.merge(y, z)), rtol=1e-12)
    np.testing.assert_array_equal(RANGE.merge(x, y), RANGE.merge(y, x))


@given(a=chunks)
def test_the_identity_has_no_effect(a: npt.NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(RANGE.merge(observe(a), RANGE.identity()), observe(a))
    np.testing.assert_array_equal(RANGE.merge(RANGE.identity(), observe(a)), observe(a))


def test_merging_works_on_many_tensors_at_once() -> None:
    many = np.stack([observe(np.float32([1, 2])), observe(np.float32([-3]))])
    merged = RANGE.merge(many, np.broadcast_to(RANGE.identity(), many.shape))
    np.testing.assert_array_equal(merged, many)


def test_a_table_speaks_in_words() -> None:
    table = StatisticsTable(samples=2)
    table.update(RANGE.kind, {"x": observe(np.float32([1, -3, 2, 0])), "never": RANGE.identity()})
    found = table.range_of("x")
    assert found is not None
    assert (found.low, found.high, found.mean_magnitude, found.elements) == (-3, 2, 1.5, 2)
    assert table.range_of("never") is None, "a branch that no sample took"
    assert table.range_of("unknown") is None


def test_channels_merge_each_for_itself() -> None:
    statistic = Channels(-1)

    def seen(x: npt.NDArray[np.float64]) -> Vector:
        return np.concatenate([x.min(0), x.max(0), x.sum(0), np.abs(x).sum(0), [x.size]])

    x = np.random.default_rng(0).integers(-9, 9, (7, 3)).astype(np.float64)
    merged = statistic.merge(statistic.identity(3), statistic.merge(seen(x[:2]), seen(x[2:])))
    np.testing.assert_array_equal(merged, seen(x))
    table = StatisticsTable(samples=1)
    table.update(statistic.kind, {"x": merged, "never": statistic.identity(3)})
    found = table.channels_of("x", -1)
    assert found is not None
    np.testing.assert_array_equal(found.low, x.min(0))
    np.testing.assert_array_equal(found.high, x.max(0))
    np.testing.assert_array_equal(found.mean, x.mean(0))
    np.testing.assert_array_equal(found.mean_magnitude, np.abs(x).mean(0))
    assert found.count == 7
    assert table.channels_of("never", -1) is None
    assert table.channels_of("x", 1) is None, "another statistic"
