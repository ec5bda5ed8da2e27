"""Mean and deviation of activations, channel by channel, as BatchNormalization remembers them of the training data.

A BatchNormalization with the parameters gamma and beta writes values of mean beta and deviation |gamma| in each
channel, whatever the samples. Taken as normal, that says what a Relu or a Clip behind it makes of them:

    E[clip(X, a, b)] = a P(a') + b (1 - P(b')) + m (P(b') - P(a')) - s (p(b') - p(a')),   a' = (a - m) / s,

with p, P the density and the distribution of N(0, 1); E[max(X, 0)] = s p(-m/s) + m (1 - P(-m/s)).

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019
(arXiv:1906.04721), appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.graph import constant, name_of

Vector = npt.NDArray[np.float64]

_SMALLEST = 1e-12
"""A channel of smaller deviation is a constant."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Of the values of one tensor, over all samples and pixels, for each channel (axis 1); shape [C] each.

    Attributes:
        deviation: standard deviation; None where only the mean is known.
    """

    mean: Vector
    deviation: Vector | None = None

    def affine(self, scale: Vector | float, shift: Vector | float) -> Moments:
        """Of scale * x + shift."""
        spread = None if self.deviation is None else np.abs(scale) * self.deviation
        return Moments(scale * self.mean + shift, spread)

    def clipped(self, low: float, high: float) -> Moments | None:
        """Of clip(x, low, high), x normal; a bound may be infinite. None without a deviation."""
        if self.deviation is None:
            return None
        m, s = self.mean, np.maximum(self.deviation, _SMALLEST)
        below, above = _distribution((low - m) / s), _distribution((m - high) / s)
        inside = 1 - below - above
        p_low, p_high = _density((low - m) / s), _density((high - m) / s)
        a, b = (low if np.isfinite(low) else 0.0), (high if np.isfinite(high) else 0.0)
        mean = a * below + b * above + m * inside - s * (p_high - p_low)
        second = a * a * below + b * b * above + (m * m + s * s) * inside - s * ((m + b) * p_high - (m + a) * p_low)
        return Moments(mean, np.sqrt(np.maximum(second - mean * mean, 0)))


def propagated(graph: ir.Graph, recorded: Mapping[str, Moments]) -> dict[str, Moments]:
    """`recorded`, and the moments of the values of `graph` that follow from them.

    Relu and Clip act on normal values; a sum has the sum of the means, and of the variances as if its terms were
    independent; an average keeps the mean. What follows from nothing known is missing.
    """
    known = dict(recorded)
    for node in graph:
        if node.outputs and name_of(node.outputs[0]) not in known:
            found = _of_output(node, known)
            if found is not None:
                known[name_of(node.outputs[0])] = found
    return known


def _of_output(node: ir.Node, known: Mapping[str, Moments]) -> Moments | None:
    given = [known.get(v.name or "") if v is not None else None for v in node.inputs]
    if node.domain != "" or not given:
        return None
    first, source = given[0], node.inputs[0]
    match node.op_type:
        case "Concat":
            parts = [m for m in given if m is not None]
            return _joined(parts) if len(parts) == len(given) and node.attributes["axis"].as_int() == 1 else None
        case "Add":
            return _sum(given[0], given[1]) if None not in given else _shifted(node, given)
        case _ if first is None or source is None:
            return None
        case "Relu":
            return first.clipped(0.0, math.inf)
        case "Clip":
            bounds = clip_bounds(node)
            return first.clipped(*bounds) if bounds else None
        case "GlobalAveragePool" | "AveragePool":
            return Moments(first.mean)
        case "Identity" | "Dropout":
            return first
        case "Flatten" | "Reshape" | "Squeeze" if _keeps_channels(source, node.outputs[0]):
            return first
    return None


def clip_bounds(node: ir.Node) -> tuple[float, float] | None:
    """The constant bounds of a Relu or a Clip, infinite where one is missing; None for anything else."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type != "Clip":
        return None
    bounds = [-math.inf, math.inf]
    for i, value in enumerate(node.inputs[1:3]):
        if value is not None:
            array = constant(value)
            if array is None:
                return None
            bounds[i] = float(array.item())
    return bounds[0], bounds[1]


def through_layer(node: ir.Node, weight: npt.NDArray[np.generic], means: Vector) -> Vector:
    """What a Conv, Gemm or MatMul with this weight and no bias makes of an input that is `means` everywhere.

    By linearity also the mean of what it makes of inputs of these means; a padded border counts as if it went on.
    """
    exact: npt.NDArray[np.float64] = weight.astype(np.float64)
    if node.op_type == "Conv":
        group = node.attributes.get_int("group", 1)
        kernel = exact.sum(axis=tuple(range(2, weight.ndim))).reshape(group, -1, weight.shape[1])
        mixed: Vector = np.einsum("goi,gi->go", kernel, means.reshape(group, -1)).reshape(-1)
        return mixed
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
    scaled: Vector = node.attributes.get_float("alpha", 1.0) * (means @ (exact.T if transposed else exact))
    return scaled


def _keeps_channels(before: ir.Value, after: ir.Value) -> bool:
    """[N, C, 1, 1] becomes [N, C], or [N, unknown]."""
    shape, result = before.shape, after.shape
    if shape is None or result is None or len(shape) < 2 or len(result) != 2:
        return False
    return all(d == 1 for d in shape[2:]) and (shape[1] == result[1] or not isinstance(result[1], int))


def _joined(parts: list[Moments]) -> Moments:
    spreads = [m.deviation for m in parts if m.deviation is not None]
    spread = np.concatenate(spreads) if len(spreads) == len(parts) else None
    return Moments(np.concatenate([m.mean for m in parts]), spread)


def _sum(a: Moments | None, b: Moments | None) -> Moments | None:
    if a is None or b is None or a.mean.shape != b.mean.shape:
        return None
    spread = None if a.deviation is None or b.deviation is None else np.hypot(a.deviation, b.deviation)
    return Moments(a.mean + b.mean, spread)


def _shifted(node: ir.Node, given: list[Moments | None]) -> Moments | None:
    """Of a value plus a constant that is one number, or one for each channel."""
    at = next((i for i, m in enumerate(given) if m is not None), None)
    if at is None:
        return None
    known, source, other = given[at], node.inputs[at], constant(node.inputs[1 - at])
    if known is None or source is None or source.shape is None or other is None:
        return None
    channels = len(known.mean)
    shape = (1,) * (len(source.shape) - other.ndim) + other.shape
    if len(shape) != len(source.shape) or other.size != shape[1] or shape[1] not in (1, channels):
        return None
    return known.affine(1.0, other.astype(np.float64).reshape(-1))


def _density(x: Vector) -> Vector:
    with np.errstate(over="ignore", under="ignore"):
        return np.exp(-0.5 * np.square(x)) / math.sqrt(2 * math.pi)


def _distribution(x: Vector) -> Vector:
    return np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
