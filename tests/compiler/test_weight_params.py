"""Weights in every format: published tables and figures, other implementations, properties, short blocks."""

from __future__ import annotations

import zlib
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qcompile.compiler import weight_params as module
from qcompile.compiler.formats import (
    FORMATS,
    FP8_E4M3,
    INT2,
    INT4,
    INT8,
    INT32,
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    NF4,
    NVFP4,
    UINT2,
    UINT4,
    NumericFormat,
    Scales,
)
from qcompile.compiler.params import QuantParams, dequantize, params_from_range, quantize, weight_range
from qcompile.compiler.specs import Granularity, PerBlock, PerChannel, PerTensor, QuantSpec
from qcompile.compiler.weight_params import (
    bits_per_weight,
    combined,
    squared_errors,
    weight_codes,
    weight_params,
)
from qcompile.errors import DataError

Floats = npt.NDArray[np.float32]

OF_WEIGHTS = [f for f in FORMATS.values() if f is not INT32]
BLOCKS_OF_32 = PerBlock(1, 32)


def normal(*shape: int, seed: int = 7) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def values_of(weight: Floats, spec: QuantSpec) -> Floats:
    params = weight_params(weight, spec)
    return np.asarray(dequantize(weight_codes(weight, params), params))


def sqnr(weight: Floats, spec: QuantSpec) -> float:
    error = values_of(weight, spec).astype(np.float64) - weight
    return float(10 * np.log10(np.square(weight, dtype=np.float64).sum() / np.square(error).sum()))


GAUSSIAN = [
    (QuantSpec(INT4, PerBlock(1, 128), symmetric=True), 18.61),
    (QuantSpec(INT4, PerBlock(1, 128), symmetric=True, full_range=True), 19.72),
    (QuantSpec(UINT4, PerBlock(1, 128), symmetric=True, full_range=True), 19.72),
    (QuantSpec(UINT4, PerBlock(1, 128)), 19.95),
    (QuantSpec(NF4, PerBlock(1, 64)), 20.73),
    (QuantSpec(NF4, PerBlock(1, 64), scales=Scales.DOUBLE), 20.73),
    (QuantSpec(FP8_E4M3), 31.5),
    (QuantSpec(NVFP4, PerBlock(1, 16)), 21.22),
]


@pytest.mark.parametrize(("spec", "published"), GAUSSIAN, ids=lambda x: str(x))
def test_gaussian_weights_keep_the_known_ratio_of_signal_to_noise(spec: QuantSpec, published: float) -> None:
    assert sqnr(normal(1024, 1024), spec) == pytest.approx(published, abs=0.03 if spec.format is not FP8_E4M3 else 0.1)


def test_choosing_six_or_four_for_each_block_of_nvfp4_gains_three_quarters_of_a_decibel() -> None:
    weight, spec = normal(1024, 1024), QuantSpec(NVFP4, PerBlock(1, 16))
    six = params_from_range(spec, *weight_range(weight, spec))
    error = dequantize(quantize(weight, six), six).astype(np.float64) - weight
    assert 10 * np.log10(np.square(weight).sum() / np.square(error).sum()) == pytest.approx(20.44, abs=0.02)
    chosen = weight_params(weight, spec)
    assert (squared_errors(weight, chosen) <= squared_errors(weight, six)).all()
    assert 0.2 < (chosen.scale != six.scale).mean() < 0.8


def test_nf4_is_bitsandbytes_bit_for_bit() -> None:
    """Facts from bitsandbytes 0.50.2 on the CPU: quantize_4bit of this matrix, blocks of 64, and their values.

    With its nested scales (compress_statistics) it has 20.7364 dB on it.
    """
    weight, spec = normal(256, 512), QuantSpec(NF4, PerBlock(1, 64))
    codes = weight_codes(weight, weight_params(weight, spec)).astype(np.uint8)
    assert codes[0, :16].tolist() == [7, 8, 6, 3, 5, 3, 7, 13, 5, 4, 9, 9, 8, 3, 7, 10]
    assert zlib.crc32(codes.tobytes()) == 2117621308
    assert zlib.crc32(values_of(weight, spec).tobytes()) == 2893563443
    assert sqnr(weight, QuantSpec(NF4, PerBlock(1, 64), scales=Scales.DOUBLE)) > 20.7364


def test_nf4_holds_the_quantiles_of_a_gaussian() -> None:
    """Each level lies where QLoRA's appendix puts it: 8 quantiles above zero and 7 below, the last at 1."""
    statistics = pytest.importorskip("statistics")
    quantile, offset = statistics.NormalDist().inv_cdf, 0.9677083
    above = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    levels = np.sort([*above, 0.0, *below]) / max(above)
    np.testing.assert_allclose(NF4.levels, levels, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "bits"),
    [
        (QuantSpec(NF4, PerBlock(1, 64)), 4.5),
        (QuantSpec(NF4, PerBlock(1, 64), scales=Scales.DOUBLE), 4.127),
        (QuantSpec(INT4, PerBlock(1, 32), symmetric=True, scales=Scales.FLOAT16), 4.5),
        (QuantSpec(INT4, PerBlock(1, 32), symmetric=True), 5.0),
        (QuantSpec(UINT4, PerBlock(1, 32), scales=Scales.FLOAT16), 4.625),
        (QuantSpec(MXFP4, BLOCKS_OF_32), 4.25),
        (QuantSpec(MXFP6_E2M3, BLOCKS_OF_32), 6.25),
        (QuantSpec(NVFP4, PerBlock(1, 16)), 4.5),
        (QuantSpec(INT8, PerChannel(0), symmetric=True), 8 + 32 / 4096),
    ],
    ids=str,
)
def test_bits_per_weight_count_the_scales(spec: QuantSpec, bits: float) -> None:
    weight = normal(256, 4096)
    assert bits_per_weight(weight_params(weight, spec), weight.shape) == pytest.approx(bits, abs=4e-4)


def test_a_zero_point_that_is_no_whole_number_counts_as_much_as_a_scale() -> None:
    spec = QuantSpec(UINT4, PerBlock(1, 32), scales=Scales.FLOAT16)
    params = QuantParams(spec, np.ones((4, 2), np.float32), np.full((4, 2), 7.5, np.float32))
    assert bits_per_weight(params, (4, 64)) == 5


@pytest.mark.parametrize("fmt", [MXFP4, MXFP6_E2M3, MXFP6_E3M2, MXFP8_E4M3, MXFP8_E5M2], ids=lambda f: f.name)
def test_mx_scales_put_the_largest_magnitude_into_the_highest_binade(fmt: NumericFormat) -> None:
    """e = floor(log2 max |w|) - floor(log2 of the format's largest number), at both sides of a power of two."""
    largest = np.float32([2.0**-20, 0.75, np.nextafter(np.float32(1), np.float32(0)), 1.0, 1.5, 2.0, 3.99, 1e20])
    weight = np.zeros((len(largest), 32), np.float32)
    weight[:, 5] = -largest
    scale = weight_params(weight, QuantSpec(fmt, BLOCKS_OF_32)).scale[:, 0]
    expected = 2.0 ** (np.floor(np.log2(largest.astype(np.float64))) - np.floor(np.log2(fmt.high)))
    np.testing.assert_array_equal(scale, expected.astype(np.float32))
    stored = scale.astype(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    np.testing.assert_array_equal(stored, scale)


@pytest.mark.parametrize("fmt", [f for f in OF_WEIGHTS if f.mantissa_bits], ids=lambda f: f.name)
@given(x=arrays.arrays(np.float32, 64, elements=st.floats(-10, 10, width=32)))
def test_floating_point_codes_are_those_of_ml_dtypes(fmt: NumericFormat, x: Floats) -> None:
    one = QuantParams(QuantSpec(fmt), np.float32(1), np.zeros((), np.int32))  # type: ignore[arg-type]
    for values in (x, x * np.float32(fmt.high / 8), x * np.float32(fmt.step)):
        inside = np.clip(values, fmt.low, fmt.high)
        np.testing.assert_array_equal(quantize(values, one), inside.astype(fmt.dtype.numpy()).astype(np.float32))


@pytest.mark.parametrize("fmt", [f for f in OF_WEIGHTS if f.bits <= 6 and f.mantissa_bits], ids=lambda f: f.name)
def test_every_number_of_a_small_format_is_its_own_code(fmt: NumericFormat) -> None:
    one = QuantParams(QuantSpec(fmt), np.float32(1), np.zeros((), np.int32))  # type: ignore[arg-type]
    every = np.arange(1 << fmt.bits, dtype=np.uint8).view(fmt.dtype.numpy()).astype(np.float32)
    np.testing.assert_array_equal(quantize(every, one), every)
    assert np.abs(every).max() == fmt.high
    assert np.diff(np.unique(every)).min() == fmt.step


grains = st.sampled_from([PerTensor(), PerChannel(0), PerChannel(1), PerBlock(0, 4), PerBlock(1, 3), PerBlock(-1, 5)])
weights = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-100, 100, width=32)
)
specs = st.builds(
    QuantSpec,
    st.sampled_from(OF_WEIGHTS),
    grains,
    symmetric=st.booleans(),
    full_range=st.booleans(),
    scales=st.sampled_from([None, *Scales]),
)


@given(weight=weights, spec=specs)
def test_codes_are_in_range_and_their_values_have_the_same_codes(weight: Floats, spec: QuantSpec) -> None:
    params, fmt = weight_params(weight, spec), spec.format
    assert (params.scale != 0).all()
    assert np.isfinite(params.scale).all()
    assert params.scale.shape == params.zero_point.shape == squared_errors(weight, params).shape
    codes = weight_codes(weight, params)
    assert codes.dtype == fmt.dtype.numpy()
    numbers = codes.astype(np.float32)
    assert (numbers >= (0 if fmt.levels else fmt.low)).all()
    assert (numbers <= (len(fmt.levels) - 1 if fmt.levels else fmt.high)).all()
    values = dequantize(codes, params)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(dequantize(weight_codes(values, params), params), values)


@given(weight=weights, spec=specs)
def test_zero_stays_zero(weight: Floats, spec: QuantSpec) -> None:
    """Of blocks, and of the zeros that fill a short last block."""
    weight[0] = 0
    assert (values_of(weight, spec)[0] == 0).all()


@given(weight=weights, spec=specs)
def test_a_short_last_block_is_a_block(weight: Floats, spec: QuantSpec) -> None:
    if not isinstance(spec.granularity, PerBlock) or spec.stored_scales in (Scales.E4M3, Scales.DOUBLE):
        return
    axis, size = spec.granularity.axis, spec.granularity.size
    values, whole = values_of(weight, spec), weight.shape[axis] // size * size
    for part in np.split(np.arange(weight.shape[axis]), range(size, whole + 1, size)):
        if part.size:
            alone = np.ascontiguousarray(weight.take(part, axis))
            np.testing.assert_array_equal(values_of(alone, spec), values.take(part, axis))


def test_the_full_range_gives_the_lowest_code_to_the_largest_magnitude() -> None:
    spec = QuantSpec(INT4, PerBlock(1, 4), symmetric=True, full_range=True)
    weight = np.float32([[4, -1, 2, 0], [-4, 1, 2, 0]])
    params = weight_params(weight, spec)
    assert params.scale.tolist() == [[-0.5], [0.5]]
    assert weight_codes(weight, params).tolist() == [[-8, 2, -4, 0], [-8, 2, 4, 0]]
    shifted = weight_params(weight, QuantSpec(UINT4, PerBlock(1, 4), symmetric=True, full_range=True))
    assert weight_codes(weight, shifted).tolist() == [[0, 10, 4, 8], [0, 10, 12, 8]]


@pytest.mark.parametrize("fmt", [INT2, UINT2], ids=lambda f: f.name)
def test_two_bits_hold_four_values(fmt: NumericFormat) -> None:
    weight = np.float32([[-1.0, 0.0, 1.0, 2.0]])
    np.testing.assert_array_equal(values_of(weight, QuantSpec(fmt, PerBlock(1, 4))), weight)


def test_fractional_zero_points_are_added_before_rounding() -> None:
    spec = QuantSpec(UINT4)
    params = QuantParams(spec, np.asarray(1, np.float32), np.asarray(2.5, np.float32))
    codes = quantize(np.float32([0.0, 0.1, 1.4, -9.0, 99.0]), params)
    assert codes.tolist() == [2, 3, 4, 0, 15]
    assert dequantize(codes, params).tolist() == [-0.5, 0.5, 1.5, -2.5, 12.5]


@pytest.mark.parametrize(
    "grain", [PerTensor(), PerChannel(0), PerChannel(1), PerBlock(0, 48), PerBlock(1, 32)], ids=str
)
def test_the_pieces_of_a_weight_make_the_whole(grain: Granularity, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, importance = normal(200, 70), np.abs(normal(200, 1))
    params = weight_params(weight, QuantSpec(UINT4, grain))
    codes, errors = weight_codes(weight, params), squared_errors(weight, params, importance)
    monkeypatch.setattr(module, "_PIECE", 1000)
    np.testing.assert_array_equal(weight_codes(weight, params), codes)
    np.testing.assert_allclose(squared_errors(weight, params, importance), errors, rtol=1e-4)
    exact = np.square(dequantize(codes, params) - weight, dtype=np.float64) * importance
    assert errors.sum() == pytest.approx(exact.sum(), rel=1e-4)


@pytest.mark.parametrize("scales", Scales)
def test_combined_parameters_take_each_scale_from_one_of_two(scales: Scales) -> None:
    weight, spec = normal(8, 64), QuantSpec(UINT4, PerBlock(1, 16), scales=scales)
    low, high = weight_range(weight, spec)
    old = params_from_range(spec, low, high)
    new = params_from_range(spec, low / 2, high / 2, old.nested.scale if old.nested else None)
    where = np.arange(old.scale.size).reshape(old.scale.shape) % 3 == 0
    both = combined(where, new, old)
    np.testing.assert_allclose(both.scale, np.where(where, new.scale, old.scale), rtol=0.02)
    np.testing.assert_array_equal(both.zero_point, np.where(where, new.zero_point, old.zero_point))
    if scales is Scales.E4M3:
        assert both.nested is not None
        np.testing.assert_array_equal(both.nested.codes.astype(np.float32) * both.nested.scale, both.scale)


def test_a_scale_beyond_fp16_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(DataError, match="too large for fp16") as caught:
        weight_params(np.float32([[1e9, 0]]), QuantSpec(INT8, scales=Scales.FLOAT16))
    assert "fp32" in (caught.value.hint or "")


def test_torch_gives_the_same_codes() -> None:
    torch = pytest.importorskip("torch")
    weight = normal(6, 40)
    for fmt in OF_WEIGHTS:
        params: Any = weight_params(weight, QuantSpec(fmt, PerBlock(1, 16)))
        codes = quantize(torch.from_numpy(weight), params)
        np.testing.assert_array_equal(codes.numpy(), quantize(weight, params))
        np.testing.assert_array_equal(dequantize(codes, params).numpy(), values_of(weight, params.spec))
