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
            blocks = xp.reshape(weight[(*before, slice(whole))], (*weight.shape[:axis], whole // size, size, *behind))
            tail = weight[(*before, slice(whole, None))]
            parts = [(blocks, axis + 1, False)] if whole else []
            parts += [(tail, axis, True)] if tail.shape[axis] else []
            low, high = (
                xp.concat([f(part, axis=along, keepdims=keep) for part, along, keep in parts], axis=axis)
                for f in (xp.min, xp.max)
            )
            return low, high


@dataclass(frozen=True, eq=False)
class Grid:
    """What values are rounded to.

    Attributes:
        scale, zero: shaped so that they broadcast against the values; no zero where it is 0 everywhere.
        fractional: the zero points are no whole numbers.
    """

    format: NumericFormat
    scale: Array
    zero: Array | None
    fractional: bool = False

    def codes(self, values: Array, xp: Any) -> Array:
        """The nearest codes, as whole numbers in float32, or as indices of levels; for floating-point formats the
        numbers that they stand for at scale 1. `xp` is numpy or torch."""
        fmt, ratio = self.format, values / self.scale
        if fmt.levels:
            return _nearest_level(ratio, fmt, xp)
        if not fmt.is_integer:
            return _nearest_float(xp.clip(ratio, fmt.low, fmt.high), fmt, xp)
        if self.zero is None:
            return xp.clip(xp.round(ratio), fmt.low, fmt.high)
        codes = xp.round(ratio + self.zero) if self.fractional else xp.round(ratio) + self.zero
        return xp.clip(codes, fmt.low, fmt.high)

    def values(self, codes: Array, xp: Any) -> Array:
        """What codes of that kind stand for: (q - z) * s, float32."""
        from array_api_compat import device, to_device

        if self.format.levels:
            levels = xp.asarray(np.asarray(self.format.levels, np.float32))
            return to_device(levels, device(codes))[codes] * self.scale
        return (codes if self.zero is None else codes - self.zero) * self.scale


def quantize(values: Array, params: QuantParams) -> Array:
    """Codes of `values` as ONNX QuantizeLinear gives them: int32, or for floating-point formats the numbers they
    stand for in float32."""
    from array_api_compat import array_namespace

    xp, fmt = array_namespace(values), params.spec.format
    codes = grid_of(params, values).codes(values, xp)
    return xp.astype(codes, xp.int32) if fmt.is_integer else codes


def dequantize(codes: Array, params: QuantParams) -> Array:
    """The values that `codes` stand for: (q - z) * s, float32."""
    from array_api_compat import array_namespace

    xp = array_namespace(codes)
    wanted = xp.int64 if params.spec.format.levels else xp.float32
    return grid_of(params, codes).values(xp.astype(codes, wanted), xp)


def grid_of(params: QuantParams, like: Array) -> Grid:
    """The grid of an array of the shape of `like`, on its device."""
    from array_api_compat import array_namespace, device

    xp, zero = array_namespace(like), params.zero_point
    arrays = [params.scale, zero.astype(np.float32)] if zero.any() else [params.scale]
    match params.spec.granularity:
        case PerChannel(axis):
            shape = tuple(-1 if i == axis % like.ndim else 1 for i in range(like.ndim))
            arrays = [a.reshape(shape) for a in arrays]
        case PerBlock(axis, size):
            axis %= like.ndim
            if like.shape[axis] > size:
                kept = (*(slice(None),) * axis, slice(like.shape[axis]))
                arrays = [np.repeat(a, size, axis)[kept] for a in arrays]
    scale, *rest = (xp.asarray(a, device=device(like)) for a in arrays)
    return Grid(params.spec.format, scale, rest[0] if rest else None, zero.dtype == np.float32)


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
        codes += values > float(between)
    return codes


def bias_params(activation: QuantParams, weight: QuantParams) -> QuantParams:
    """Parameters of an int32 bias: s_b = s_x * s_w and z_b = 0, so that it adds to the accumulator as it is."""
    scale = (activation.scale.astype(np.float64) * weight.scale.astype(np.float64)).astype(np.float32)
    grain = PerChannel(0) if scale.ndim else PerTensor()
    return QuantParams(QuantSpec(INT32, grain, symmetric=True), scale, np.zeros(scale.shape, np.int32))
