"""Scale and zero point from a range, and the codes they give.

    s = (max - min) / (qmax - qmin) with 0 in the range,   z = round(qmin - min / s),
    q = clip(round(x / s) + z, qmin, qmax),   x~ = (q - z) * s,   ties to even.

Floating-point formats and codebooks: s = max |x| / qmax, z = 0, q the number of the format, or the index of the level,
next to clip(x / s, -qmax, qmax). Scales are then stored as the spec says (scales.py); those that are powers of two take
the power of two of qmax in its place. A zero point that is no whole number is added before rounding.

Source: ONNX QuantizeLinear / DequantizeLinear; the OCP Microscaling specification 1.0, section 6.3. Written against
the array API, so the same lines run on numpy and on torch tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.compiler.formats import INT32, NumericFormat, Scales
from qcompile.compiler.scales import NestedScales, store
from qcompile.compiler.specs import PerBlock, PerChannel, PerTensor, QuantSpec
from qcompile.errors import DataError

Array = Any  # any array that follows the array API: numpy.ndarray or torch.Tensor


@dataclass(frozen=True, eq=False)
class QuantParams:
    """The scale and zero point of one tensor.

    Attributes:
        spec: what they were made for.
        scale: float32, shape [] (per tensor), [C] (per channel), or that of the tensor with the blocked axis
            divided by the block size, rounded up (per block). What is in effect: already rounded as it is stored.
        zero_point: same shape as `scale`; int32 of the format's own range, or float32 where it is no whole number.
        nested: what is stored of scales that are quantized themselves.
    """

    spec: QuantSpec
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.int32] | npt.NDArray[np.float32]
    nested: NestedScales | None = None


def params_from_range(
    spec: QuantSpec, low: Any, high: Any, whole: npt.NDArray[np.float32] | None = None
) -> QuantParams:
    """Scale and zero point for values in [low, high].

    Args:
        low, high: scalars (per tensor) or arrays of the shape of the scale.
        whole: the scale of the whole tensor over E4M3 scales; left out, that of this range.

    Raises:
        DataError: a bound is not finite.
    """
    low = np.minimum(np.asarray(low, np.float64), 0.0)
    high = np.maximum(np.asarray(high, np.float64), 0.0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise DataError("a range is not finite", hint="look for NaN or infinity in the samples")
    fmt = spec.format
    if spec.symmetric or not fmt.is_integer:
        middle = 0 if fmt.is_signed else int(fmt.low + (fmt.high - fmt.low + 1) // 2)
        if spec.full_range and fmt.is_integer:
            scale, nested = store(np.where(high > -low, high, low) / (fmt.low - middle), spec, whole)
        else:
            scale, nested = store(np.maximum(-low, high) / _half_range(spec), spec, whole)
        zero_point = np.full(scale.shape, middle, np.int32)
    else:
        scale, nested = store((high - low) / (fmt.high - fmt.low), spec, whole)
        zero_point = np.clip(np.rint(fmt.low - low / scale), fmt.low, fmt.high).astype(np.int32)
    return QuantParams(spec, scale.astype(np.float32), zero_point, nested)


def _half_range(spec: QuantSpec) -> float:
    fmt = spec.format
    half = fmt.high if fmt.is_signed else (fmt.high - fmt.low) / 2
    return 2.0 ** (np.frexp(half)[1] - 1) if spec.stored_scales is Scales.POWER_OF_TWO else half


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
            whole = weight.shape[axis] // size * size
            before, behind = (slice(None),) * axis, weight.shape[axis + 1 :]
            blocks = xp.reshape(weight[(*before, slice(whole))], (*weight.shape[:axis], -1, size, *behind))
            tail = weight[(*before, slice(whole, None))]
            parts = [(blocks, axis + 1, False)] if whole else []
            parts += [(tail, axis, True)] if tail.shape[axis] else []
            low, high = (
                xp.concat([f(part, axis=along, keepdims=keep) for part, along, keep in parts], axis=axis)
                for f in (xp.min, xp.max)
            )
            return low, high


def quantize(values: Array, params: QuantParams) -> Array:
    """Codes of `values` as ONNX QuantizeLinear gives them: int32, or for floating-point formats the numbers they
    stand for in float32."""
    from array_api_compat import array_namespace

    xp = array_namespace(values)
    fmt = params.spec.format
    scale, zero = _broadcast(params, values, xp)
    if fmt.levels:
        return _nearest_level(values / scale, fmt, xp)
    if not fmt.is_integer:
        return _nearest_float(xp.clip(values / scale, fmt.low, fmt.high), fmt, xp)
    if params.zero_point.dtype == np.float32:
        return xp.astype(xp.clip(xp.round(values / scale + zero), fmt.low, fmt.high), xp.int32)
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


def _nearest_level(values: Array, fmt: NumericFormat, xp: Any) -> Array:
    """How many of the midpoints between levels lie below each value; faster for so few than a binary search."""
    levels = np.asarray(fmt.levels, np.float32)
    codes = xp.zeros_like(values, dtype=xp.int32)
    for between in (levels[1:] + levels[:-1]) / 2:
        codes += xp.astype(values > float(between), xp.int32)
    return codes


def dequantize(codes: Array, params: QuantParams) -> Array:
    """The values that `codes` stand for: (q - z) * s, float32."""
    from array_api_compat import array_namespace, device

    xp = array_namespace(codes)
    scale, zero = _broadcast(params, codes, xp)
    if params.spec.format.levels:
        levels = xp.asarray(np.asarray(params.spec.format.levels, np.float32), device=device(codes))
        return levels[xp.astype(codes, xp.int64)] * scale
    return (xp.astype(codes, xp.float32) - zero) * scale


def spread(params: QuantParams, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Scale and zero point of every value of a tensor of `shape`."""
    like = np.broadcast_to(np.float32(0), shape)
    scale, zero = (np.broadcast_to(a, shape) for a in _broadcast(params, like, np))
    return scale, zero.astype(params.zero_point.dtype)


def _broadcast(params: QuantParams, like: Array, xp: Any) -> tuple[Array, ...]:
    """Scale and zero point on the device of `like`, shaped so that they broadcast against it."""
    from array_api_compat import device

    both = [params.scale, params.zero_point.astype(np.float32)]
    match params.spec.granularity:
        case PerChannel(axis):
            shape = tuple(-1 if i == axis % like.ndim else 1 for i in range(like.ndim))
            both = [a.reshape(shape) for a in both]
        case PerBlock(axis, size):
            axis %= like.ndim
            if like.shape[axis] > size:
                kept = (*(slice(None),) * axis, slice(like.shape[axis]))
                both = [np.repeat(a, size, axis)[kept] for a in both]
    return tuple(xp.asarray(a, device=device(like)) for a in both)


def bias_params(activation: QuantParams, weight: QuantParams) -> QuantParams:
    """Parameters of an int32 bias: s_b = s_x * s_w and z_b = 0, so that it adds to the accumulator as it is."""
    scale = (activation.scale.astype(np.float64) * weight.scale.astype(np.float64)).astype(np.float32)
    grain = PerChannel(0) if scale.ndim else PerTensor()
    return QuantParams(QuantSpec(INT32, grain, symmetric=True), scale, np.zeros(scale.shape, np.int32))
