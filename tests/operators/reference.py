"""What the operators of the domain `qcompile` compute, in numpy: float64, int64, and ml_dtypes for narrow types.

Written from the definitions in words, not from the function bodies, and shared by whatever runs the operators:
bodies, CPU kernels, CUDA kernels. A result comes with the error that float32 arithmetic may have made of it before
it was rounded to its type, so one check serves all types and all orders of summation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import erf
from typing import Any

import ml_dtypes
import numpy as np

from qcompile.compiler.operators import Operator

Array = np.ndarray[Any, Any]
UNIT = 2.0**-24
"""Relative error of one rounding to float32."""


@dataclass(frozen=True, eq=False)
class Expected:
    """A result before it is rounded to its type.

    Attributes:
        value: float64, within the range of the type where that saturates.
        slack: how far from it float32 arithmetic may have come.
        dtype: the type it is then rounded to, nearest.
    """

    value: Array
    slack: Array
    dtype: np.dtype[Any]

    def check(self, got: Array, what: str = "") -> None:
        """Raise AssertionError unless `got` is a right result; NaN must answer to NaN, whatever codes it became."""
        assert got.dtype == self.dtype, f"{what}: {got.dtype} instead of {self.dtype}"
        assert got.shape == self.value.shape, f"{what}: {got.shape} instead of {self.value.shape}"
        found, value = got.astype(np.float64), self.value
        if _is_float(self.dtype):
            np.testing.assert_array_equal(np.isnan(found), np.isnan(value), err_msg=what)
            largest = float(ml_dtypes.finfo(self.dtype).max)
            beyond = largest + 2 * _half_step(largest, self.dtype)  # infinity stands where the next number would
            found, value = np.clip(found, -beyond, beyond), np.clip(value, -beyond, beyond)
        ordinary = ~np.isnan(value)
        off = np.abs(found - value)[ordinary]
        allowed = (_half_step(value, self.dtype) * (1 + 2.0**-20) + self.slack)[ordinary]
        worst = int(np.argmax(off - allowed)) if off.size else 0
        assert np.all(off <= allowed), (
            f"{what}: {np.sum(off > allowed)} of {off.size} results are wrong, one is "
            f"{found[ordinary][worst]}, expected {value[ordinary][worst]} +- {allowed[worst]}"
        )


def expected(
    operator: Operator,
    operands: Mapping[str, Array],
    attributes: Mapping[str, int | float] | None = None,
    *,
    accumulation: float = UNIT,
) -> dict[str, Expected]:
    """Every output of `operator`, optional ones too, by name.

    Args:
        accumulation: relative error of one addition in a product of floats; tensor cores have a larger one.
    """
    given = dict(attributes or {})
    types = {o.name: np.dtype(o.dtype.numpy()) for o in operator.outputs}
    if operator.name.startswith("QuantizeRows"):
        return _quantize_rows(operands["x"], types["x_q"])
    if "NormQuant" in operator.name:
        return _norm_quant(operands, types, float(given["epsilon"]), rms="RMS" in operator.name)
    y, slack = _product(operands, given, accumulation)
    if "bias" in operands:
        y = y + operands["bias"].astype(np.float64)
        slack = slack + UNIT * np.abs(y)
    activation = re.search("Relu|Gelu|Silu", operator.name)
    if activation:
        y, slack = _activation(activation[0], y, slack)
    if "y_scale" in operands:
        scale = float(operands["y_scale"][0])
        y, slack = y / scale, slack / scale + UNIT * np.abs(y / scale)
        return {"y_q": Expected(np.clip(y, -128, 127), slack, types["y_q"])}
    return {"y": Expected(y, slack, types["y"])}


def _product(
    operands: Mapping[str, Array], attributes: Mapping[str, int | float], accumulation: float
) -> tuple[Array, Array]:
    """x w^T with all scales, before the bias, and the error it may have."""
    if "columns" in operands:
        return _with_outliers(operands)
    if "x" in operands:
        x, w = operands["x"].astype(np.float64), operands["w"].astype(np.float64)
        if "w_scale" in operands:
            block = int(attributes["block_size"])
            scale, zero = (np.repeat(operands[n].astype(np.float64), block, 1) for n in ("w_scale", "w_scale"))
            zero = np.repeat(operands["w_zero"].astype(np.float64), block, 1) if "w_zero" in operands else 0.0
            w = ((w - zero) * scale).astype(operands["x"].dtype).astype(np.float64)
        magnitude = np.abs(x) @ np.abs(w).T
        return x @ w.T, (x.shape[-1] * accumulation + UNIT) * magnitude
    x, w = operands["x_q"], operands["w"]
    scales = operands["x_scale"].astype(np.float64) * operands["w_scale"].astype(np.float64)
    if x.dtype == np.int8:
        exact = (x.astype(np.int64) @ w.astype(np.int64).T) * scales
        return exact, 3 * UNIT * np.abs(exact)
    x, w = x.astype(np.float64), w.astype(np.float64)
    magnitude = (np.abs(x) @ np.abs(w).T) * scales
    return (x @ w.T) * scales, (x.shape[-1] * accumulation + 3 * UNIT) * magnitude


def _with_outliers(operands: Mapping[str, Array]) -> tuple[Array, Array]:
    """Codes of the rows without the outlier columns, and these as they are."""
    x, exact = operands["x"].astype(np.float32), operands["w_columns"].astype(np.float64)
    rows = _quantize_rows(x * operands["keep"], np.dtype(np.int8))
    codes = {"x_q": np.rint(rows["x_q"].value).astype(np.int8), "x_scale": rows["x_scale"].value}
    y, slack = _product({**codes, "w": operands["w"], "w_scale": operands["w_scale"]}, {}, UNIT)
    taken = x[..., operands["columns"]].astype(np.float64)
    outliers, magnitude = taken @ exact, np.abs(taken) @ np.abs(exact)
    return y + outliers, slack + (len(exact) + 1) * UNIT * magnitude + UNIT * np.abs(y + outliers)


def _activation(name: str, y: Array, slack: Array) -> tuple[Array, Array]:
    """The activation, whose slope is nowhere above 1.13, and the error of its own arithmetic."""
    if name == "Relu":
        return np.maximum(y, 0.0), slack
    with np.errstate(over="ignore"):
        gate = 0.5 * (1 + _erf(y / np.sqrt(2))) if name == "Gelu" else 1 / (1 + np.exp(-y))
    return y * gate, 1.13 * slack + 8 * UNIT * np.abs(y)


def _quantize_rows(x: Array, codes: np.dtype[Any]) -> dict[str, Expected]:
    """Exactly: float32 division is the same everywhere."""
    single = x.astype(np.float32)
    scale = np.abs(single).max(axis=-1, keepdims=True) / np.float32(_high(codes))
    scale = np.where(scale == 0, np.float32(1), scale)
    with np.errstate(invalid="ignore"):
        ratio = _saturated((single / scale).astype(np.float64), codes)
    none = np.zeros_like(ratio)
    return {
        "x_q": Expected(ratio, none, codes),
        "x_scale": Expected(scale.astype(np.float64), none[..., :1], np.dtype(np.float32)),
    }


def _norm_quant(
    operands: Mapping[str, Array], types: Mapping[str, np.dtype[Any]], epsilon: float, *, rms: bool
) -> dict[str, Expected]:
    x = operands["x"]
    results = {}
    if "skip" in operands:
        total = x.astype(np.float32) + operands["skip"].astype(np.float32)
        results["sum"] = Expected(total.astype(np.float64), np.zeros(x.shape), x.dtype)
        x = total.astype(x.dtype)
    y, slack = _norm(x.astype(np.float64), operands, epsilon, rms=rms)
    results["y"] = Expected(y, slack, operands["x"].dtype)
    codes = types["x_q"]
    high = _high(codes)
    scale = np.abs(y).max(axis=-1, keepdims=True) / high
    off = slack.max(axis=-1, keepdims=True) / high + 2 * UNIT * scale
    scale = np.where(scale == 0, 1.0, scale)
    ratio = y / scale
    results["x_scale"] = Expected(scale, off, np.dtype(np.float32))
    results["x_q"] = Expected(_saturated(ratio, codes), (slack + np.abs(ratio) * off) / scale, codes)
    return results


def _norm(x: Array, operands: Mapping[str, Array], epsilon: float, *, rms: bool) -> tuple[Array, Array]:
    """The norm, and the error of sums over a row that round no worse than 32 times each."""
    gamma = operands["gamma"].astype(np.float64)
    mean = np.zeros((*x.shape[:-1], 1)) if rms else x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True) + epsilon
    unit = (x - mean) / np.sqrt(variance)
    of_mean = 0.0 if rms else 32 * UNIT * np.abs(x).mean(axis=-1, keepdims=True)
    of_variance = 32 * UNIT * ((x**2).mean(axis=-1, keepdims=True) + epsilon) / variance
    slack = np.abs(unit) * (of_variance / 2 + 4 * UNIT) + of_mean / np.sqrt(variance)
    y = unit * gamma + (operands["beta"].astype(np.float64) if "beta" in operands else 0.0)
    return y, slack * np.abs(gamma) + 2 * UNIT * (np.abs(unit * gamma) + np.abs(y))


def _is_float(dtype: np.dtype[Any]) -> bool:
    """Whether values beyond the range become infinite; codes saturate."""
    return dtype in (np.float32, np.float16, ml_dtypes.bfloat16)


def _high(codes: np.dtype[Any]) -> float:
    return 127.0 if codes == np.int8 else float(ml_dtypes.finfo(codes).max)


def _saturated(ratio: Array, codes: np.dtype[Any]) -> Array:
    return np.clip(ratio, -_high(codes), _high(codes))


def _half_step(value: Array | float, dtype: np.dtype[Any]) -> Array:
    """Half the distance between neighbours in `dtype` at `value`; beyond its largest number, as there."""
    if dtype == np.int8:
        return np.full(np.shape(value), 0.5)
    info = ml_dtypes.finfo(dtype)
    largest = int(np.frexp(float(info.max))[1]) - 1
    exponent = np.clip(np.frexp(np.abs(np.asarray(value, np.float64)))[1] - 1, int(info.minexp), largest)
    return np.ldexp(0.5, exponent - info.nmant)


_erf = np.vectorize(erf, otypes=[np.float64])
