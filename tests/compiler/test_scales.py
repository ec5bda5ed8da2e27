"""Scales that are stored in few bits: what is in effect is what the stored parts say."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qcompile.compiler.formats import INT4, Scales
from qcompile.compiler.scales import GROUP, store
from qcompile.compiler.specs import PerBlock, PerTensor, QuantSpec


def spec(scales: Scales, axis: int = 1) -> QuantSpec:
    return QuantSpec(INT4, PerBlock(axis, 16), symmetric=True, scales=scales)


wanted = arrays.arrays(
    np.float64, st.tuples(st.integers(1, 40), st.integers(1, 12)), elements=st.floats(0, 1e4).map(lambda x: x**3 / 1e8)
)


@given(scale=wanted, scales=st.sampled_from(Scales), axis=st.sampled_from([0, 1]))
def test_no_scale_is_zero_and_each_is_near_what_was_wanted(scale: np.ndarray, scales: Scales, axis: int) -> None:
    effective, nested = store(scale, spec(scales, axis))
    assert effective.shape == scale.shape
    assert (effective != 0).all()
    if scales is Scales.POWER_OF_TWO:
        usable = scale[scale > 1e-30]
        assert ((effective[scale > 1e-30] <= usable) & (2 * effective[scale > 1e-30] > usable)).all()
    elif nested is None:
        assert np.allclose(effective, np.where(scale == 0, 1, scale), rtol=2**-11, atol=2**-24)


def test_double_quantization_subtracts_the_mean_and_takes_groups_of_256() -> None:
    scale = np.random.default_rng(1).uniform(0.5, 1.5, (300, 2))
    effective, nested = store(scale, spec(Scales.DOUBLE, axis=0))
    assert nested is not None
    assert nested.offset == np.float32(scale.mean())
    assert nested.scale.shape == (3,)
    assert nested.codes.dtype == np.int8
    rows = np.moveaxis(nested.codes, 0, -1).reshape(-1).astype(np.float32)
    np.testing.assert_array_equal(
        (rows * np.repeat(nested.scale, GROUP)[: rows.size] + nested.offset).astype(np.float32),
        np.moveaxis(effective, 0, -1).reshape(-1),
    )
    assert np.abs(effective - scale).max() <= 0.5 * float(nested.scale.max()) * 1.01


def test_e4m3_scales_leave_room_for_one_and_a_half_times_the_largest() -> None:
    scale = np.random.default_rng(2).uniform(0.1, 3.0, (20, 4))
    effective, nested = store(scale, spec(Scales.E4M3))
    assert nested is not None
    assert nested.codes.dtype == ml_dtypes.float8_e4m3fn
    codes = nested.codes.astype(np.float32)
    assert 1.5 * codes.max() <= 448
    np.testing.assert_array_equal(effective, codes * nested.scale)
    np.testing.assert_allclose(effective, scale, rtol=2**-4)
    beyond, _ = store(scale * 1000, spec(Scales.E4M3), whole=nested.scale)
    assert beyond.max() == 448 * nested.scale


@pytest.mark.parametrize("scales", Scales)
def test_one_scale_for_a_tensor_is_stored_too(scales: Scales) -> None:
    effective, _ = store(np.asarray(0.25), QuantSpec(INT4, PerTensor(), symmetric=True, scales=scales))
    assert effective.shape == ()
    assert effective == 0.25


def test_fp16_scales_are_raised_to_the_smallest_number_there_is() -> None:
    effective, _ = store(np.array([1e-12, -1e-12, 1 / 3]), spec(Scales.FLOAT16))
    assert effective.tolist() == [2.0**-24, -(2.0**-24), float(np.float16(1 / 3))]
