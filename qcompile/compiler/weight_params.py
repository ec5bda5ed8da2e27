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

from qcompile.compiler.formats import Scales
from qcompile.compiler.params import QuantParams, dequantize, params_from_range, quantize, weight_range
from qcompile.compiler.scales import store
from qcompile.compiler.specs import PerBlock, PerChannel, PerTensor, QuantSpec
from qcompile.runtime.device import fetch

Array = Any  # numpy.ndarray or torch.Tensor

_PIECE = 1 << 17
"""Elements that are treated at a time: few enough for the caches of one core."""

_PIECE_ON_DEVICE = 1 << 24
"""The same for a GPU, whose kernels want many."""

_FOUR_OVER_SIX = 1.5

_SCALE_BITS = {Scales.FLOAT32: 32, Scales.FLOAT16: 16, Scales.POWER_OF_TWO: 8, Scales.E4M3: 8, Scales.DOUBLE: 8}


def weight_params(weight: Array, spec: QuantSpec) -> QuantParams:
    """Scales and zero points of `weight` from the range of its values."""
    low, high = (fetch(bound) for bound in weight_range(weight, spec))
    params = params_from_range(spec, low, high)
    if spec.stored_scales is not Scales.E4M3:
        return params
    assert params.nested is not None
    four = params_from_range(spec, low * _FOUR_OVER_SIX, high * _FOUR_OVER_SIX, params.nested.scale)
    return combined(squared_errors(weight, four) < squared_errors(weight, params), four, params)


def combined(where: npt.NDArray[np.bool_], new: QuantParams, old: QuantParams) -> QuantParams:
    """`new` for the scales that are marked, `old` for the others; both of one spec, and of one scale of the whole
    tensor where there is one."""
    scale, nested = np.where(where, new.scale, old.scale), None
    if old.nested is not None and new.nested is not None:
        if old.spec.stored_scales is Scales.DOUBLE:
            effective, nested = store(scale, old.spec)
            scale = effective.astype(np.float32)
        else:
            nested = replace(old.nested, codes=np.where(where, new.nested.codes, old.nested.codes))
    return replace(old, scale=scale, zero_point=np.where(where, new.zero_point, old.zero_point), nested=nested)


def weight_codes(weight: Array, params: QuantParams) -> Array:
    """The codes of `weight`, rounded to nearest, in numpy and in the type of the format."""
    dtype = params.spec.format.dtype.numpy()
    codes = np.empty(weight.shape, dtype)
    for rows, _, part in pieces_of(weight, params):
        codes[rows] = fetch(quantize(weight[rows], part)).astype(dtype)
    return codes


def squared_errors(weight: Array, params: QuantParams, importance: Array | None = None) -> npt.NDArray[np.float32]:
    """Sum of (w - w~)^2 over the values of each scale, in numpy and in the shape of the scales.

    Args:
        importance: what each squared error counts; of a shape that broadcasts to that of the weight.
    """
    from array_api_compat import array_namespace, device

    xp = array_namespace(weight)
    errors = np.zeros(params.scale.shape, np.float32)
    shared = None
    if importance is not None:
        shared = xp.broadcast_to(xp.asarray(importance, device=device(weight)), weight.shape)
    for rows, scales, part in pieces_of(weight, params):
        error = xp.square(dequantize(quantize(weight[rows], part), part) - weight[rows])
        if shared is not None:
            error *= shared[rows]
        errors[scales] += fetch(sums(error, params.spec))
    return errors


def sums(values: Array, spec: QuantSpec) -> Array:
    """The sum of the values of each scale."""
    from array_api_compat import array_namespace

    match spec.granularity:
        case PerTensor():
            return values.sum()
        case PerChannel(axis):
            return values.sum(axis=tuple(i for i in range(values.ndim) if i != axis % values.ndim))
        case PerBlock(axis, size):
            axis %= values.ndim
            shape, whole = values.shape, values.shape[axis] // size * size
            before = (slice(None),) * axis
            blocks = values[(*before, slice(whole))].reshape((*shape[:axis], whole // size, size, *shape[axis + 1 :]))
            parts = [blocks.sum(axis=axis + 1)]
            if whole < shape[axis]:
                parts.append(values[(*before, slice(whole, None))].sum(axis=axis)[(*before, None)])
            return array_namespace(values).concat(parts, axis=axis)


def pieces_of(weight: Array, params: QuantParams) -> Iterator[tuple[Any, Any, QuantParams]]:
    """The pieces of a weight, as large as suits the device where it lies."""
    return pieces(weight.shape, params, _PIECE if isinstance(weight, np.ndarray) else _PIECE_ON_DEVICE)


def pieces(shape: tuple[int, ...], params: QuantParams, most: int = _PIECE) -> Iterator[tuple[Any, Any, QuantParams]]:
    """A tensor of `shape` a few rows at a time: which rows, where their scales lie, and their parameters.

    No block is parted in two; the scale of a tensor, or of a column, belongs to all pieces.

    Args:
        most: elements of a piece, unless one row has more.
    """
    grain = params.spec.granularity
    step = max(1, most // max(1, prod(shape[1:])))
    if isinstance(grain, PerBlock) and grain.axis % len(shape) == 0:
        step = -(-step // grain.size) * grain.size
    if not shape or step >= shape[0]:
        yield ..., ..., params
        return
    for start in range(0, shape[0], step):
        rows = slice(start, start + step)
        own = _scales_at(params, rows, len(shape))
        yield rows, own, replace(params, scale=params.scale[own], zero_point=params.zero_point[own], nested=None)


def _scales_at(params: QuantParams, rows: slice, rank: int) -> Any:
    match params.spec.granularity:
        case PerBlock(axis, size) if axis % rank == 0:
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
