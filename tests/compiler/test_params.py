"""Scale, zero point and codes against ONNX Runtime's own QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper

from qcompile.compiler.formats import INT8, INT16, UINT8, UINT16, NumericFormat
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

FORMATS = (INT8, UINT8, INT16, UINT16)
Floats = npt.NDArray[np.float32]

finite = st.floats(-1e6, 1e6, width=32)
tensors = arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=3, max_side=6), elements=finite)
formats = st.sampled_from(FORMATS)


@cache
def _session(code: int, axis: int, block: int) -> onnxruntime.InferenceSession:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=axis, block_size=block),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis, block_size=block),
    ]
    inputs = [helper.make_tensor_value_info(n, t, None) for n, t in (("x", 1), ("s", 1), ("z", code))]
    outputs = [helper.make_tensor_value_info(n, t, None) for n, t in (("q", code), ("y", TensorProto.FLOAT))]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def runtime(x: Floats, params: QuantParams) -> tuple[npt.NDArray[Any], Floats]:
    """Codes and values as ONNX Runtime gives them."""
    grain, fmt = params.spec.granularity, params.spec.format
    axis = 0 if isinstance(grain, PerTensor) else grain.axis
    block = grain.size if isinstance(grain, PerBlock) else 0
    zero = np.asarray(params.zero_point, fmt.dtype.numpy())
    feeds = {"x": x, "s": np.asarray(params.scale), "z": zero}
    codes, values = _session(int(onnx.helper.np_dtype_to_tensor_dtype(zero.dtype)), axis, block).run(None, feeds)
    return codes, values


grains = st.sampled_from([PerTensor(), PerChannel(1), PerChannel(-1), PerBlock(0, 2), PerBlock(1, 3)])


@given(x=tensors, fmt=formats, symmetric=st.booleans(), grain=grains)
def test_codes_and_values_are_the_runtimes_bit_for_bit(
    x: Floats, fmt: NumericFormat, symmetric: bool, grain: Granularity
) -> None:
    spec = QuantSpec(fmt, grain, symmetric)
    params = params_from_range(spec, *weight_range(x, spec))
    codes, values = runtime(x, params)
    np.testing.assert_array_equal(quantize(x, params), codes)
    np.testing.assert_array_equal(dequantize(codes, params), values)


@given(x=tensors, fmt=formats, symmetric=st.booleans())
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


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("symmetric", [True, False])
def test_each_bit_is_worth_six_decibels(fmt: NumericFormat, symmetric: bool) -> None:
    """Uniform values on the full range: SQNR = 6.02 dB for each bit."""
    x = np.random.default_rng(0).uniform(-1, 1, 200_000).astype(np.float32)
    params = params_from_range(QuantSpec(fmt, symmetric=symmetric), -1.0, 1.0)
    noise = dequantize(quantize(x, params), params).astype(np.float64) - x
    sqnr = 10 * np.log10(np.mean(x.astype(np.float64) ** 2) / np.mean(noise**2))
    levels = fmt.high - fmt.low + (0 if symmetric and fmt.is_signed else 1)
    assert sqnr == pytest.approx(20 * np.log10(levels), abs=0.1)
    assert sqnr == pytest.approx(6.02 * fmt.bits, abs=0.15)


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


def test_codes_stay_on_the_device_of_the_values() -> None:
    torch = pytest.importorskip("torch")
    params = params_from_range(QuantSpec(INT8, PerChannel(0), symmetric=True), [-1.0, -2.0], [1.0, 2.0])
    codes = quantize(torch.ones((2, 3), device="meta"), params)
    assert codes.device.type == dequantize(codes, params).device.type == "meta"
