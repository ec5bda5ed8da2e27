"""Parameters and codes of a weight: what round-to-nearest gives, and what it costs in bits and in error.

The range of each scale gives its parameters (params.py). NVFP4 has a choice more: the largest magnitude of a block is
put at 6 or at 4, where the grid is finer around it, whichever gives the smaller squared error ("four over six":
Cook et al., "Four Over Six", 2025).

Weights are read in pieces of some rows, so that beside a weight and its codes little else is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.compiler.formats import FP8_E4M3, Scales
from qcompile.compiler.params import QuantParams, dequantize, params_from_range, quantize, weight_range
from qcompile.compiler.specs import PerBlock, PerChannel, PerTensor, QuantSpec

Array = npt.NDArray[Any]

_PIECE = 1 << 22
"""Elements that are treated at a time."""

_FOUR_OVER_SIX = 1.5

_SCALE_BITS = {Scales.FLOAT32: 32, Scales.FLOAT16: 16, Scales.POWER_OF_TWO: 8, Scales.E4M3: 8, Scales.DOUBLE: 8}


def weight_params(weight: Array, spec: QuantSpec) -> QuantParams:
    """Scales and zero points of `weight` from the range of its values."""
    params = params_from_range(spec, *weight_range(weight, spec))
    return _four_over_six(weight, params) if spec.stored_scales is Scales.E4M3 else params


def _four_over_six(weight: Array, six: QuantParams) -> QuantParams:
    assert six.nested is not None
    codes = (six.nested.codes.astype(np.float32) * _FOUR_OVER_SIX).astype(FP8_E4M3.dtype.numpy())
    four = with_e4m3_scales(six, codes)
    better = squared_errors(weight, four) < squared_errors(weight, six)
    return with_e4m3_scales(six, np.where(better, codes, six.nested.codes))


def with_e4m3_scales(params: QuantParams, codes: Array) -> QuantParams:
    """`params` with other E4M3 scales under the same scale of the whole tensor."""
    assert params.nested is not None
    scale = codes.astype(np.float32) * params.nested.scale
    return replace(params, scale=scale, nested=replace(params.nested, codes=codes))


def weight_codes(weight: Array, params: QuantParams) -> Array:
    """The codes of `weight`, rounded to nearest, in the type of the format."""
    dtype = params.spec.format.dtype.numpy()
    codes = np.empty(weight.shape, dtype)
    for at, part in pieces(weight.shape, params):
        codes[at] = quantize(weight[at], part).astype(dtype)
    return codes


def squared_errors(weight: Array, params: QuantParams, importance: Array | None = None) -> npt.NDArray[np.float32]:
    """Sum of (w - w~)^2 over the values of each scale, in the shape of the scales.

    Args:
        importance: what each squared error counts; of a shape that broadcasts to that of the weight.
    """
    errors = np.zeros(params.scale.shape, np.float32)
    shared = None if importance is None else np.broadcast_to(importance, weight.shape)
    for at, part in pieces(weight.shape, params):
        error = np.square(dequantize(quantize(weight[at], part), part) - weight[at])
        if shared is not None:
            error *= shared[at]
        errors[_scales_at(params, at, weight.ndim)] += sums(error, params.spec)
    return errors


def sums(values: Array, spec: QuantSpec) -> Array:
    """The sum of the values of each scale."""
    match spec.granularity:
        case PerTensor():
            return np.asarray(values.sum())
        case PerChannel(axis):
            return np.asarray(values.sum(axis=tuple(i for i in range(values.ndim) if i != axis % values.ndim)))
        case PerBlock(axis, size):
            return np.add.reduceat(values, np.arange(0, values.shape[axis], size), axis=axis)


def pieces(shape: tuple[int, ...], params: QuantParams) -> Iterator[tuple[Any, QuantParams]]:
    """Rows of a tensor of `shape` a few at a time, with their parameters. No block is parted in two."""
    grain = params.spec.granularity
    step = max(1, _PIECE // max(1, prod(shape[1:])))
    if isinstance(grain, PerBlock) and grain.axis % len(shape) == 0:
        step = -(-step // grain.size) * grain.size
    if not shape or step >= shape[0]:
        yield ..., params
        return
    for start in range(0, shape[0], step):
        at = slice(start, start + step)
        own = _scales_at(params, at, len(shape))
        yield at, replace(params, scale=params.scale[own], zero_point=params.zero_point[own], nested=None)


def _scales_at(params: QuantParams, rows: Any, rank: int) -> Any:
    """Which scales the rows of a tensor of that rank have."""
    match params.spec.granularity:
        case PerBlock(axis, size) if axis % rank == 0 and rows is not ...:
            return slice(rows.start // size, rows.stop // size)
        case PerChannel(axis) if axis % rank:
            return ...
        case PerTensor():
            return ...
    return rows


def bits_per_weight(params: QuantParams, shape: tuple[int, ...]) -> float:
    """Bits that one value of a tensor of `shape` takes, with its share of the scales and zero points."""
    spec, count = params.spec, prod(shape)
    scale_bits = _SCALE_BITS[spec.stored_scales]
    bits = float(params.scale.size * scale_bits)
    if params.nested is not None:
        bits += 32.0 * (params.nested.scale.size + (spec.stored_scales is Scales.DOUBLE))
    if params.zero_point.dtype == np.float32:
        bits += params.scale.size * scale_bits
    elif spec.format.is_integer and not spec.symmetric:
        bits += params.scale.size * spec.format.bits
    return spec.format.bits + bits / count
