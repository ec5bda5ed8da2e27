"""How scales are stored, and what that makes of them.

    fp16            s~ = fp16(s)
    power of two    s~ = 2^floor(log2 s)
    fp8-e4m3        s~ = e4m3(s / t) t,   t = max s / 256
    double          s~ = c t_g + m,   m = mean s,   t_g = max |s - m| / 127,   c = round((s - m) / t_g)

Groups g are 256 scales, in the order of the blocks of one row after the other (the blocked axis last). The largest
E4M3 scale is 256 and not 448, so that a block may take one and a half times its scale (weight_params.py). A scale is
never zero: one that would vanish takes the next stored number. Source: QLoRA, 2023, section 3 (double, here with
linear codes); the OCP Microscaling specification 1.0; NVIDIA's NVFP4.

Errors: DataError where a scale is too large for fp16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.compiler.formats import FLOAT16, FP8_E4M3, Scales
from qcompile.compiler.specs import PerBlock, QuantSpec
from qcompile.errors import DataError

GROUP = 256
"""Scales that share one scale of their own under double quantization."""

_LARGEST_E4M3 = 256.0
_LARGEST_CODE = 127
_SMALLEST = float(np.finfo(np.float32).tiny)

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class NestedScales:
    """What is stored of scales that are quantized themselves: codes * scale + offset.

    Attributes:
        codes: in the shape of the scales; E4M3 numbers or int8.
        scale: float32, [] for the whole tensor or [groups], the last group perhaps shorter.
        offset: float32, [].
    """

    codes: npt.NDArray[Any]
    scale: npt.NDArray[np.float32]
    offset: npt.NDArray[np.float32]


def store(
    scale: Floats, spec: QuantSpec, whole: npt.NDArray[np.float32] | None = None
) -> tuple[Floats, NestedScales | None]:
    """The scales in effect once they are stored as `spec` says, and the stored parts where there are several.

    Args:
        scale: wanted scales, zero where all values are.
        whole: t, where the scales are E4M3 numbers; left out, by the formula above.
    """
    match spec.stored_scales:
        case Scales.FLOAT32:
            return _usable(scale), None
        case Scales.FLOAT16:
            return _half(_usable(scale)), None
        case Scales.POWER_OF_TWO:
            mantissa, exponent = np.frexp(_usable(scale))
            return np.ldexp(np.sign(mantissa), exponent - 1), None
        case Scales.E4M3:
            nested = _e4m3(scale, whole)
            return (nested.codes.astype(np.float32) * nested.scale).astype(np.float32), nested
        case Scales.DOUBLE:
            return _double(scale, spec)


def _usable(scale: Floats) -> Floats:
    """A constant zero tensor has no range; scale 1 gives it the exact code. Denormal scales are raised."""
    return np.where(scale == 0, 1.0, np.copysign(np.maximum(np.abs(scale), _SMALLEST), scale))


def _half(scale: Floats) -> Floats:
    least = float(np.finfo(np.float16).smallest_subnormal)
    magnitude = np.maximum(np.abs(scale), least)
    if (magnitude > FLOAT16.high).any():
        raise DataError(
            f"a scale of {float(magnitude.max()):.3g} is too large for fp16",
            hint="its layer holds huge weights: keep it float, or store the scales as fp32",
        )
    return np.copysign(magnitude, scale).astype(np.float16).astype(np.float64)


def _e4m3(scale: Floats, whole: npt.NDArray[np.float32] | None) -> NestedScales:
    if whole is None:
        whole = np.asarray(_usable(scale.max(initial=0) / _LARGEST_E4M3), np.float32)
    codes = np.clip(scale / whole, FP8_E4M3.step, FP8_E4M3.high).astype(np.float32)
    return NestedScales(codes.astype(FP8_E4M3.dtype.numpy()), whole, np.zeros((), np.float32))


def _double(scale: Floats, spec: QuantSpec) -> tuple[Floats, NestedScales]:
    ordered = _in_order(scale, spec)
    rest = ordered.size
    groups = np.zeros((-(-rest // GROUP), GROUP))
    mean = np.float32(ordered.mean())
    groups.reshape(-1)[:rest] = ordered.reshape(-1) - mean
    step = _usable(np.abs(groups).max(axis=1) / _LARGEST_CODE).astype(np.float32)
    codes = np.rint(groups / step[:, None]).astype(np.float32)
    codes += codes * step[:, None] + mean == 0
    effective = codes * step[:, None] + mean
    back: list[npt.NDArray[Any]] = [
        a.reshape(-1)[:rest].reshape(ordered.shape) for a in (effective, codes.astype(np.int8))
    ]
    if isinstance(spec.granularity, PerBlock):
        back = [np.ascontiguousarray(np.moveaxis(a, -1, spec.granularity.axis)) for a in back]
    return back[0], NestedScales(back[1], step, np.asarray(mean, np.float32))


def _in_order(scale: Floats, spec: QuantSpec) -> Floats:
    return np.moveaxis(scale, spec.granularity.axis, -1) if isinstance(spec.granularity, PerBlock) else scale
