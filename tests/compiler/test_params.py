"""Scale, zero point and codes against ONNX Runtime's own QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper

from qcompile.compiler.formats import (
    FP8_E4M3,
    FP8_E5M2,
    INT4,
    INT8,
    INT16,
    UINT4,
    UINT8,
    UINT16,
    NumericFormat,
)
from qcompile.compiler.params import (
    QuantParams,
    bias_params,
    dequantize,
    params_from_range,
    quantize,
    weight_range,
)
from qcompile.compiler.specs import Granularity, PerBlock, PerChannel, PerTensor, QuantSpec
from qcompile.errors import DataError

INTEGERS = (INT8, UINT8, INT16, UINT16, INT4, UINT4)
FLOATS = (FP8_E4M3, FP8_E5M2)
FORMATS = (*INTEGERS, *FLOATS)
Floats = npt.NDArray[np.float32]

finite = st.floats(-1e6, 1e6, width=32)
tensors = arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=3, max_side=6), elements=finite)
formats = st.sampled_from(FORMATS)


@cache
def _session(code: int, axis: int, block: int) -> onnxruntime.InferenceSession:
    """Codes, given back as numbers since numpy has no type for some, and the values they stand for.

    The zero point enters as int32, since numpy has no type for some of its own either.
    """
    conversion = {"axis": axis, "block_size": block}
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    nodes = [
        helper.make_node("Cast", ["z"], ["zero"], to=code),
        helper.make_node("QuantizeLinear", ["x", "s", "zero"], ["q"], **conversion),
        helper.make_node("DequantizeLinear", ["q", "s", "zero"], ["y"], **conversion),
        helper.make_node("DequantizeLinear", ["q", "one"], ["codes"]),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xsz"]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("codes", "y")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def runtime(x: Floats, params: QuantParams) -> tuple[Floats, Floats]:
    """Codes, as numbers, and values as ONNX Runtime gives them."""
    grain = params.spec.granularity
    axis = 0 if isinstance(grain, PerTensor) else grain.axis
    block = grain.size if isinstance(grain, PerBlock) else 0
    feeds = {"x": x, "s": np.asarray(params.scale), "z": np.asarray(params.zero_point, np.float32)}
    codes, values = _session(int(params.spec.format.dtype), axis, block).run(None, feeds)
    return codes, values


def assert_same_bits(found: npt.NDArray[Any], expected: Floats) -> None:
    """Equal, also in the sign of zero."""
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


grains = st.sampled_from([PerTensor(), PerChannel(1), PerChannel(-1), PerBlock(0, 2), PerBlock(1, 3)])


@given(x=tensors, fmt=formats, symmetric=st.booleans(), grain=grains)
def test_codes_and_values_are_the_runtimes_bit_for_bit(
    x: Floats, fmt: NumericFormat, symmetric: bool, grain: Granularity
) -> None:
    spec = QuantSpec(fmt, grain, symmetric)
    params = params_from_range(spec, *weight_range(x, spec))
    codes, values = runtime(x, params)
    found = quantize(x, params)
    assert_same_bits(found, codes)
    assert_same_bits(dequantize(found, params), values)
    stored = found.astype(fmt.dtype.numpy())
    assert_same_bits(stored.astype(np.float32), codes)
    assert_same_bits(dequantize(stored, params), values)


@given(
    x=arrays.arrays(np.float32, st.integers(1, 30), elements=st.floats(width=32, allow_nan=False)),
    fmt=formats,
    scale=st.floats(float(np.finfo(np.float32).tiny), 2.0**100, width=32),
    shift=st.floats(0, 1),
)
def test_any_value_at_any_scale_has_the_runtimes_code(
    x: Floats, fmt: NumericFormat, scale: float, shift: float
) -> None:
    """Beyond the range, infinite, subnormal, -0.0; the runtime's 4-bit codes wrap around where x / s exceeds int32."""
    with np.errstate(over="ignore"):
        assume(fmt.bits > 4 or bool((np.abs(x / np.float32(scale)) < 2**30).all()))
    zero = round(fmt.low + shift * (fmt.high - fmt.low)) if fmt.is_integer else 0
    params = QuantParams(QuantSpec(fmt), np.float32(scale), np.asarray(zero, np.int32))  # type: ignore[arg-type]
    with np.errstate(over="ignore"):
        codes, _ = runtime(x, params)
        assert_same_bits(quantize(x, params), codes)


@pytest.mark.parametrize("fmt", INTEGERS, ids=lambda f: f.name)
def test_halves_go_to_the_even_code(fmt: NumericFormat) -> None:
    x = np.arange(-9.5, 10, 1, np.float32)
    params = QuantParams(QuantSpec(fmt), np.float32(1), np.asarray(0, np.int32))  # type: ignore[arg-type]
    assert_same_bits(quantize(x, params), runtime(x, params)[0])
    np.testing.assert_array_equal(quantize(np.float32([0.5, 1.5, 2.5]), params), [0, 2, 2])


@pytest.mark.parametrize("fmt", FLOATS, ids=lambda f: f.name)
def test_every_fp8_number_is_its_own_code_and_midpoints_go_to_even(fmt: NumericFormat) -> None:
    params = QuantParams(QuantSpec(fmt, symmetric=True), np.float32(1), np.asarray(0, np.int32))  # type: ignore[arg-type]
    every = np.arange(256, dtype=np.uint8).view(fmt.dtype.numpy()).astype(np.float32)
    every = np.unique(every[np.isfinite(every)])
    assert_same_bits(quantize(every, params), every)
    middle = (every[1:] + every[:-1]) / 2
    around = np.concatenate([middle, np.nextafter(middle, np.float32(9e9)), np.nextafter(middle, np.float32(-9e9))])
    assert_same_bits(quantize(around, params), around.astype(fmt.dtype.numpy()).astype(np.float32))
    assert_same_bits(quantize(around, params), runtime(around, params)[0])


def test_fp8_saturates_where_a_bare_cast_gives_nan() -> None:
    params = QuantParams(QuantSpec(FP8_E4M3), np.float32(1), np.asarray(0, np.int32))  # type: ignore[arg-type]
    x = np.float32([500, -500, np.inf, 464, 449, 448])
    np.testing.assert_array_equal(quantize(x, params), [448, -448, 448, 448, 448, 448])
    assert np.isnan(x.astype(FP8_E4M3.dtype.numpy())[0])


def test_fp8_scales_put_the_largest_magnitude_at_the_end_of_the_range() -> None:
    for fmt, largest in ((FP8_E4M3, 448), (FP8_E5M2, 57344)):
        params = params_from_range(QuantSpec(fmt), -3.0, 2.0)
        assert params.scale == np.float32(3 / largest)
        assert params.zero_point == 0
        assert quantize(np.float32([-3]), params) == -largest


@given(x=arrays.arrays(np.float32, st.integers(1, 30), elements=finite))
def test_scale_and_zero_point_are_those_of_dynamic_quantization(x: Floats) -> None:
    """ONNX DynamicQuantizeLinear divides in float32; ours is the correctly rounded quotient."""
    _, scale, zero = _dynamic().run(None, {"x": x})
    params = params_from_range(QuantSpec(UINT8), x.min(), x.max())
    if not x.any() or scale < np.finfo(np.float32).tiny:
        return
    np.testing.assert_allclose(params.scale, scale, rtol=2e-7)
    exact = -min(float(x.min()), 0.0) / float(scale)
    if abs(exact - np.floor(exact) - 0.5) > 1e-4:  # elsewhere the last bit of the scale decides
        assert params.zero_point == zero


@cache
def _dynamic() -> onnxruntime.InferenceSession:
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    kinds = {"q": TensorProto.UINT8, "s": TensorProto.FLOAT, "z": TensorProto.UINT8}
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    outputs = [helper.make_tensor_value_info(n, t, None) for n, t in kinds.items()]
    model = helper.make_model(
        helper.make_graph([node], "g", given, outputs), opset_imports=[helper.make_opsetid("", 21)]
    )
    model.ir_version = 10
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@given(x=tensors, fmt=st.sampled_from(INTEGERS), symmetric=st.booleans())
def test_no_value_in_range_is_off_by_more_than_a_step(x: Floats, fmt: NumericFormat, symmetric: bool) -> None:
    spec = QuantSpec(fmt, symmetric=symmetric)
    params = params_from_range(spec, x.min(), x.max())
    error = np.abs(dequantize(quantize(x, params), params).astype(np.float64) - x)
    assert error.max() <= float(params.scale) * (1 + 1e-3), "half a step, and half for the rounded zero point"


@given(fmt=formats, symmetric=st.booleans(), low=finite, high=finite)
def test_zero_is_exact_and_parameters_are_legal(fmt: NumericFormat, symmetric: bool, low: float, high: float) -> None:
    params = params_from_range(QuantSpec(fmt, symmetric=symmetric), min(low, high), max(low, high))
    assert params.scale > 0
    assert np.isfinite(params.scale)
    assert fmt.low <= params.zero_point <= fmt.high
    zero = np.zeros(1, np.float32)
    np.testing.assert_array_equal(dequantize(quantize(zero, params), params), zero)
    if symmetric and fmt.is_signed:
        assert params.zero_point == 0


def test_symmetric_signed_codes_leave_the_lowest_out() -> None:
    params = params_from_range(QuantSpec(INT8, symmetric=True), -2.0, 1.0)
    np.testing.assert_array_equal(quantize(np.float32([-2, 2, 0]), params), [-127, 127, 0])
    assert params.scale == np.float32(2 / 127)


def test_the_textbook_example() -> None:
    params = params_from_range(QuantSpec(UINT8), -1.0, 3.0)
    assert params.scale == np.float32(4 / 255)
    assert params.zero_point == 64
    np.testing.assert_array_equal(quantize(np.float32([-1, 0, 3, -9, 9]), params), [0, 64, 255, 0, 255])


def test_a_range_without_zero_is_widened_to_it() -> None:
    params = params_from_range(QuantSpec(UINT8), 2.0, 6.0)
    assert (params.scale, params.zero_point) == (np.float32(6 / 255), 0)


def test_constant_zero_gets_a_usable_scale() -> None:
    for fmt in FORMATS:
        params = params_from_range(QuantSpec(fmt), 0.0, 0.0)
        assert params.scale == 1.0


@pytest.mark.parametrize("bound", [np.nan, np.inf, -np.inf])
def test_a_range_that_is_not_finite_is_an_error(bound: float) -> None:
    with pytest.raises(DataError, match="not finite"):
        params_from_range(QuantSpec(INT8), np.minimum(bound, 0), np.maximum(bound, 1))


@pytest.mark.parametrize("fmt", INTEGERS, ids=lambda f: f.name)
@pytest.mark.parametrize("symmetric", [True, False])
def test_each_bit_is_worth_six_decibels(fmt: NumericFormat, symmetric: bool) -> None:
    """Uniform values on the full range: SQNR = 6.02 dB for each bit."""
    x = np.random.default_rng(0).uniform(-1, 1, 200_000).astype(np.float32)
    params = params_from_range(QuantSpec(fmt, symmetric=symmetric), -1.0, 1.0)
    noise = dequantize(quantize(x, params), params).astype(np.float64) - x
    sqnr = 10 * np.log10(np.mean(x.astype(np.float64) ** 2) / np.mean(noise**2))
    assert sqnr == pytest.approx(20 * np.log10(2 / params.scale), abs=0.1)
    assert sqnr == pytest.approx(6.02 * fmt.bits, abs=0.15 if fmt.bits > 4 else 1.2)


def test_gaussian_noise_of_int8_and_fp8() -> None:
    """On five sigma int8 gives 10 lg(12 (127 / 5)^2) = 38.9 dB. The step of E4M3 is 2^-3 of the power of two below a
    value: 31.5 dB wherever the values lie, so it wins where outliers stretch the range."""
    x = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)

    def sqnr(fmt: NumericFormat, largest: float) -> float:
        params = params_from_range(QuantSpec(fmt, symmetric=True), -largest, largest)
        noise = dequantize(quantize(x, params), params).astype(np.float64) - x
        return float(10 * np.log10(np.mean(x.astype(np.float64) ** 2) / np.mean(noise**2)))

    assert sqnr(INT8, 5) == pytest.approx(38.9, abs=0.1)
    assert sqnr(FP8_E4M3, 5) == pytest.approx(31.5, abs=0.1)
    assert sqnr(INT8, 100) == pytest.approx(12.9, abs=0.1)
    assert sqnr(FP8_E4M3, 100) == pytest.approx(31.5, abs=0.3)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_the_bias_adds_to_the_accumulator_as_it_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((5, 7), (7, 3), (3,)))
    x_params = params_from_range(QuantSpec(UINT8), x.min(), x.max())
    w_spec = QuantSpec(INT8, PerChannel(1), symmetric=True)
    w_params = params_from_range(w_spec, *weight_range(w, w_spec))
    b_params = bias_params(x_params, w_params)
    codes = quantize(x, x_params) - x_params.zero_point
    accumulator = codes @ quantize(w, w_params) + quantize(b, b_params)
    exact = dequantize(quantize(x, x_params), x_params) @ dequantize(quantize(w, w_params), w_params) + b
    np.testing.assert_allclose(accumulator * b_params.scale, exact, atol=float(b_params.scale.max()))


def test_torch_and_numpy_give_the_same_codes() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(3).standard_normal((4, 9)).astype(np.float32)
    spec = QuantSpec(INT8, PerChannel(0), symmetric=True)
    params = params_from_range(spec, *weight_range(x, spec))
    tensor = torch.from_numpy(x)
    low, high = weight_range(tensor, spec)
    np.testing.assert_array_equal(params_from_range(spec, low, high).scale, params.scale)
    np.testing.assert_array_equal(quantize(tensor, params).numpy(), quantize(x, params))
    np.testing.assert_array_equal(
        dequantize(quantize(tensor, params), params).numpy(), dequantize(quantize(x, params), params)
    )
    for fmt in FLOATS:
        params = params_from_range(QuantSpec(fmt), -1.0, 3.0)
        np.testing.assert_array_equal(quantize(tensor, params).numpy(), quantize(x, params))


def test_codes_stay_on_the_device_of_the_values() -> None:
    torch = pytest.importorskip("torch")
    params = params_from_range(QuantSpec(INT8, PerChannel(0), symmetric=True), [-1.0, -2.0], [1.0, 2.0])
    codes = quantize(torch.ones((2, 3), device="meta"), params)
    assert codes.device.type == dequantize(codes, params).device.type == "meta"
