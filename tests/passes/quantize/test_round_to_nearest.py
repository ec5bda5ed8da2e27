"""Codes of weights against the closed form, with biases that a channel's own scale could not hold."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.compiler.params import dequantize
from tests.passes.int8 import Array, Lowered, check, head, int8, normal

X = {"x": normal(40, 16)}
LAYER = head() + "g (float[40,16] x) => (float[40,8] y) { y = Gemm (x, w, b) }"


def layer(weight: Array, bias: Array) -> Lowered:
    return int8(LAYER, {"w": weight, "b": bias}, [X])


def test_the_closed_form_per_channel() -> None:
    weight = normal(16, 8) * np.float32(10.0) ** np.arange(-4, 4, dtype=np.float32)
    result = layer(weight, np.zeros(8, np.float32))
    quantized = result.plan.weights["w", "Gemm_0"]
    scale = np.abs(weight).max(axis=0) / np.float32(127)
    np.testing.assert_allclose(quantized.params.scale, scale, rtol=1e-6)
    np.testing.assert_array_equal(quantized.codes, np.clip(np.rint(weight / quantized.params.scale), -127, 127))
    assert np.abs(dequantize(quantized.codes, quantized.params) - weight).max(axis=0) == pytest.approx(
        scale / 2, rel=0.2
    )
    assert not quantized.params.zero_point.any()


@pytest.mark.parametrize(
    ("text", "weight", "axis"),
    [
        ("g (float[40,16] x) => (float[40,8] y) { y = Gemm (x, w) }", normal(16, 8), 1),
        ("g (float[40,16] x) => (float[40,8] y) { y = Gemm <transB = 1> (x, w) }", normal(8, 16), 0),
        ("g (float[40,16] x) => (float[40,8] y) { y = MatMul (x, w) }", normal(16, 8), 1),
    ],
)
def test_channels_are_outputs(text: str, weight: Array, axis: int) -> None:
    result = int8(head() + text, {"w": weight}, [X])
    [quantized] = result.plan.weights.values()
    np.testing.assert_allclose(quantized.params.scale, np.abs(weight).max(axis=1 - axis) / 127, rtol=1e-6)
    check(result, least=35)


def errors(result: Lowered) -> Array:
    """Largest error of each output channel."""
    found: Array = np.abs(result.plain["y"] - result.expected["y"]).max(axis=0)
    return found


def test_a_bias_that_would_overflow_raises_the_scale_of_its_channel() -> None:
    weight, bias = normal(16, 8), normal(8)
    weight[:, 3] *= np.float32(1e-9)
    bias[3] = 1000
    result = layer(weight, bias)
    x = float(result.plan.tensors["x"].scale)
    scale = result.plan.weights["w", "Gemm_0"].params.scale
    assert abs(bias[3]) / (x * float(scale[3])) <= 2**30 * (1 + 1e-6)
    others = np.arange(8) != 3
    np.testing.assert_allclose(scale[others], np.abs(weight[:, others]).max(axis=0) / 127, rtol=1e-6)
    assert errors(result)[3] < 1e-3, "the bias is kept to six digits"
    check(result, least=30)


@pytest.mark.parametrize("bias", [3.7, -0.02, 1e-20, 0.0, 1e6])
def test_a_channel_of_zeros_says_its_bias_exactly(bias: float) -> None:
    weight, biases = normal(16, 8), normal(8)
    weight[:, 5], biases[5] = 0, bias
    x = {"x": 100 * X["x"]}
    result = int8(LAYER, {"w": weight, "b": biases}, [x])
    np.testing.assert_allclose(result.plain["y"][:, 5], biases[5], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(result.optimized["y"][:, 5], biases[5], rtol=1e-6, atol=1e-12)
    assert (result.plan.weights["w", "Gemm_0"].codes[:, 5] == 0).all()


def test_channels_of_one_weight_are_not_silent() -> None:
    """A depthwise 1 x 1 convolution has one weight in each channel."""
    text = head() + "g (float[1,8,6,6] x) => (float[1,8,6,6] y) { y = Conv <group = 8> (x, w, b) }"
    result = int8(text, {"w": normal(8, 1, 1, 1), "b": normal(8)}, [{"x": normal(1, 8, 6, 6)}])
    assert (np.abs(result.plan.weights["w", "Conv_0"].codes) == 127).all()
    check(result, least=30)


@pytest.mark.parametrize("size", [1e-30, 1e-38, 1e-42, 1e30])
def test_extreme_weights_give_legal_numbers(size: float) -> None:
    weight = normal(16, 8)
    weight[:, 2] *= np.float32(size)
    for bias in (np.zeros(8, np.float32), normal(8)):
        result = layer(weight, bias)
        params = result.plan.weights["w", "Gemm_0"].params
        assert np.isfinite(params.scale).all()
        assert (params.scale >= np.finfo(np.float32).tiny).all()
        assert np.isfinite(result.plain["y"]).all()
        ordinary = np.arange(8) != 2
        assert errors(result)[ordinary].max() < 0.2


def test_a_scalar_bias_is_spread_over_the_channels() -> None:
    for shape in ((), (1,), (1, 1), (1, 8)):
        check(layer(normal(16, 8), 30 * normal(*shape)), least=30)
