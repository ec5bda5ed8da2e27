"""Codes of a matrix as the kernels for blocks of weights want them: rows of output channels, packed into bytes.

Source: the operator specifications of com.microsoft::MatMulNBits and GatherBlockQuantized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.compiler.params import QuantParams
from qcompile.compiler.plan import QuantizedWeight
from qcompile.compiler.specs import PerBlock, PerChannel

Array = npt.NDArray[Any]

_SIZES = (256, 128, 64, 32, 16)
_OF_A_ROW = 128

_PIECE = 1 << 22
"""Codes that are packed at a time: little is in memory beside them and the result."""


@dataclass(frozen=True, eq=False)
class PackedBlocks:
    """A weight [N, K] in blocks along K.

    Attributes:
        shape: N and K.
        size: weights that share a scale.
        codes: uint8 [N, blocks, size * bits / 8], signed codes with 2^(bits - 1) added.
        scale: [N, blocks].
        zero_point: uint8 [N, ceil(blocks * bits / 8)], float32 [N, blocks] where it is no code, or None where
            it is 2^(bits - 1) everywhere.
    """

    shape: tuple[int, int]
    bits: int
    size: int
    codes: npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.uint8] | npt.NDArray[np.float32] | None


def packed_blocks(weight: QuantizedWeight) -> PackedBlocks:
    """The blocks of an integer weight of rank 2 whose parameters are per block or per channel."""
    fmt, axis = weight.params.spec.format, _reduced(weight.params)
    rows = np.moveaxis(weight.codes, axis, 1)
    depth = rows.shape[1]
    size = _block_size(weight.params, depth)
    middle = 2 ** (fmt.bits - 1)
    lifted = middle if fmt.is_signed else 0
    count = -(-depth // size)
    packed = np.empty((len(rows), count, size * fmt.bits // 8), np.uint8)
    at_a_time = max(1, _PIECE // (count * size))
    for start in range(0, len(rows), at_a_time):
        part = rows[start : start + at_a_time]
        filled = np.full((len(part), count * size), middle, np.uint8)
        filled[:, :depth] = part.astype(np.int16) + lifted
        packed[start : start + at_a_time] = packed_codes(filled.reshape(len(part), count, size), fmt.bits)
    scale, zero = (_of_blocks(a, weight.params, rows.shape, size) for a in (weight.params.scale, _zero(weight.params)))
    return PackedBlocks(
        shape=(rows.shape[0], depth),
        bits=fmt.bits,
        size=size,
        codes=packed,
        scale=np.ascontiguousarray(scale),
        zero_point=_stored(zero + lifted, fmt.bits),
    )


def blocks_last(values: Array, params: QuantParams) -> Array:
    """Scales, zero points or codes with the blocked axis last; per channel, that axis is first."""
    grain = params.spec.granularity
    return np.moveaxis(values, grain.axis, -1) if isinstance(grain, PerBlock) else values


def _reduced(params: QuantParams) -> int:
    """The axis that is summed over."""
    grain = params.spec.granularity
    return grain.axis if isinstance(grain, PerBlock) else 1 - grain.axis if isinstance(grain, PerChannel) else 0


def _stored(zero: Array, bits: int) -> Array | None:
    """Zero points as a kernel reads them, None where they are what it assumes."""
    if (zero == 2 ** (bits - 1)).all():
        return None
    return zero.astype(np.float32) if zero.dtype.kind == "f" else packed_codes(zero, bits)


def _zero(params: QuantParams) -> Array:
    """Zero points as integers where they are whole numbers."""
    zero = params.zero_point
    whole = zero.dtype.kind != "f" or np.array_equal(zero, np.rint(zero))
    return zero.astype(np.int16) if whole else zero


def _block_size(params: QuantParams, depth: int) -> int:
    """The largest block of the kernel in which no two scales meet."""
    grain = params.spec.granularity
    if not isinstance(grain, PerBlock):
        return _OF_A_ROW
    fitting = next((size for size in _SIZES if grain.size % size == 0), None)
    assert fitting or grain.size >= depth, "blocks within a row are multiples of 16"
    return fitting or _OF_A_ROW


def _of_blocks(values: Array, params: QuantParams, shape: tuple[int, ...], size: int) -> Array:
    """Scales or zero points as [N, blocks of `size`]."""
    columns, depth = shape
    count, grain = -(-depth // size), params.spec.granularity
    if not isinstance(grain, PerBlock):
        return np.broadcast_to(values.reshape(-1, 1), (columns, count))
    return np.repeat(blocks_last(values, params), max(grain.size // size, 1), axis=1)[:, :count]


def packed_codes(codes: Array, bits: int) -> npt.NDArray[np.uint8]:
    """Unsigned codes of the last axis behind one another in bytes, the low bits first; a last byte is filled with 0."""
    each = 8 // bits
    filled = np.pad(codes.astype(np.uint8), [*((0, 0),) * (codes.ndim - 1), (0, -codes.shape[-1] % each)])
    parts = filled.reshape(*codes.shape[:-1], -1, each) << (np.arange(each, dtype=np.uint8) * bits)
    packed: npt.NDArray[np.uint8] = np.bitwise_or.reduce(parts, axis=-1)
    return packed


def unpacked_codes(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """What `packed_codes` packed, filled up to whole bytes."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes: npt.NDArray[np.uint8] = (packed[..., None] >> shifts & (2**bits - 1)).astype(np.uint8)
    return codes.reshape(*packed.shape[:-1], -1)


def high_half_first(codes: Array) -> npt.NDArray[np.uint8]:
    """4-bit codes behind one another, two in a byte."""
    flat = codes.astype(np.uint8).reshape(-1)
    flat = np.pad(flat, (0, flat.size % 2))
    return np.asarray(flat[0::2] << 4 | flat[1::2], np.uint8)
