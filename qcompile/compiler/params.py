"""Scale and zero point from a range, and the codes they give.

    s = (max - min) / (qmax - qmin) with 0 in the range,   z = round(qmin - min / s),
    q = clip(round(x / s) + z, qmin, qmax),   x~ = (q - z) * s,   ties to even.

FP8: s = max |x| / qmax, z = 0, q the number of the format next to clip(x / s, -qmax, qmax).

Source: ONNX QuantizeLinear / DequantizeLinear. Written against the array API, so the same lines
run on numpy and on torch tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.compiler.formats import INT32, NumericFormat
from qcompile.compiler.specs import PerBlock, PerChannel, PerTensor, QuantSpec
from qcompile.errors import DataError

Array = Any  # any array that follows the array API: numpy.ndarray or torch.Tensor

_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class QuantParams:
    """The scale and zero point of one tensor.

    Attributes:
        spec: what they were made for.
        scale: float32, shape [] (per tensor), [C] (per channel), or that of the tensor with the blocked axis
            divided by the block size, rounded up (per block).
        zero_point: same shape as `scale`, of the format's own range.
    """

    spec: QuantSpec
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.int32]


def params_from_range(spec: QuantSpec, low: Any, high: Any) -> QuantParams:
    """Scale and zero point for values in [low, high].

    Args:
        low, high: scalars (per tensor) or arrays of shape [C] (per channel).

    Raises:
        DataError: a bound is not finite.
    """
    low = np.minimum(np.asarray(low, np.float64), 0.0)
    high = np.maximum(np.asarray(high, np.float64), 0.0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise DataError("a range is not finite", hint="look for NaN or infinity in the samples")
    fmt = spec.format
    if spec.symmetric or not fmt.is_integer:
        magnitude = np.maximum(-low, high)
        scale = magnitude / _half_range(fmt)
        middle = 0 if fmt.is_signed else int(fmt.low + (fmt.high - fmt.low + 1) // 2)
        zero_point = np.full(scale.shape, middle, np.int32)
        scale = _usable(scale)
    else:
        scale = _usable((high - low) / (fmt.high - fmt.low))
        zero_point = np.clip(np.rint(fmt.low - low / scale), fmt.low, fmt.high).astype(np.int32)
    return QuantParams(spec, scale.astype(np.float32), zero_point)


def _half_range(fmt: NumericFormat) -> float:
    return fmt.high if fmt.is_signed else (fmt.high - fmt.low) / 2


def _usable(scale: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A constant zero tensor has no range; scale 1 gives it the exact code. Denormal scales are raised."""
    return np.where(scale == 0, 1.0, np.maximum(scale, _SMALLEST_SCALE))


def weight_range(weight: Array, spec: QuantSpec) -> tuple[Array, Array]:
    """Smallest and largest value for each scale of `spec`, in the shape of the scale."""
    from array_api_compat import array_namespace

    xp = array_namespace(weight)
    match spec.granularity:
        case PerTensor():
            return xp.min(weight), xp.max(weight)
        case PerChannel(axis):
            rest = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
            return xp.min(weight, axis=rest), xp.max(weight, axis=rest)
        case PerBlock(axis, size):
            axis %= weight.ndim
            length = weight.shape[axis]
            count = -(-length // size)
            last = xp.asarray([min(i, length - 1) for i in range(count * size)])  # a short tail repeats its last
            shape = (*weight.shape[:axis], count, size, *weight.shape[axis + 1 :])
            blocks = xp.reshape(xp.take(weight, last, axis=axis), shape)
            return xp.min(blocks, axis=axis + 1), xp.max(blocks, axis=axis + 1)


def quantize(values: Array, params: QuantParams) -> Array:
    """Codes of `values` as ONNX QuantizeLinear gives them: int32, or for FP8 the numbers they stand for in float32."""
    from array_api_compat import array_namespace

    xp = array_namespace(values)
    fmt = params.spec.format
    scale, zero = _broadcast(params, values, xp)
    if not fmt.is_integer:
        return _nearest_float(xp.clip(values / scale, fmt.low, fmt.high), fmt, xp)
    codes = xp.round(values / scale)
    if params.zero_point.any():
        codes = codes + zero
    return xp.astype(xp.clip(codes, fmt.low, fmt.high), xp.int32)


def _nearest_float(values: Array, fmt: NumericFormat, xp: Any) -> Array:
    """The numbers of a floating-point format next to `values`, which lie in its range; ties to even.

    The step is 2^(e - mantissa bits) for values of exponent e. `xp` is numpy or torch, which both have frexp.
    """
    _, exponent = xp.frexp(values)
    step = xp.clip(exponent - 1, fmt.lowest_exponent, None) - fmt.mantissa_bits
    return xp.ldexp(xp.round(xp.ldexp(values, -step)), step)


def dequantize(codes: Array, params: QuantParams) -> Array:
    """The values that `codes` stand for: (q - z) * s, float32."""
    from array_api_compat import array_namespace

    xp = array_namespace(codes)
    scale, zero = _broadcast(params, codes, xp)
    return (xp.astype(codes, xp.float32) - zero) * scale


def _broadcast(params: QuantParams, like: Array, xp: Any) -> tuple[Array, ...]:
    """Scale and zero point on the device of `like`, shaped so that they broadcast against it."""
    from array_api_compat import device

    both = [params.scale, params.zero_point.astype(np.float32)]
    match params.spec.granularity:
        case PerChannel(axis):
            shape = tuple(-1 if i == axis % like.ndim else 1 for i in range(like.ndim))
            both = [a.reshape(shape) for a in both]
        case PerBlock(axis, size):
            both = [np.repeat(a, size, axis).take(range(like.shape[axis]), axis) for a in both]
    return tuple(xp.asarray(a, device=device(like)) for a in both)


def bias_params(activation: QuantParams, weight: QuantParams) -> QuantParams:
    """Parameters of an int32 bias: s_b = s_x * s_w and z_b = 0, so that it adds to the accumulator as it is."""
    scale = (activation.scale.astype(np.float64) * weight.scale.astype(np.float64)).astype(np.float32)
    grain = PerChannel(0) if scale.ndim else PerTensor()
    return QuantParams(QuantSpec(INT32, grain, symmetric=True), scale, np.zeros(scale.shape, np.int32))
