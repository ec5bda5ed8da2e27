"""Does a tensor fit into a half type: no overflow, no values lost below the smallest normal number.

    constants    max |x| <= largest, ||x - half(x)|| <= 2 u ||x||,  u = 2^-11 (float16), 2^-8 (bfloat16)
    activations  2 max |x| <= largest, mean |x| >= smallest normal

of the samples that were observed; the factor 2 is for what they do not show.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.formats import BFLOAT16, FLOAT16
from qcompile.compiler.graph import is_constant, is_float32, name_of, nodes
from qcompile.compiler.observation import observe
from qcompile.compiler.serialization import runnable
from qcompile.compiler.statistics import RANGE, StatisticsTable, TensorRange
from qcompile.compiler.stored_weights import not_on_the_cpu
from qcompile.compiler.tally import Tally
from qcompile.runtime.calibration import read_samples
from qcompile.runtime.providers import session_entries, why_not_loaded

_MARGIN = 2.0


_WITHIN_INPUTS = {
    "Abs", "AveragePool", "Compress", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements",
    "GatherND", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "Neg", "Relu", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze",
}  # fmt: skip
"""Operators whose results are within the range of their inputs."""

HALF = {f.dtype: f for f in (FLOAT16, BFLOAT16)}


def unfit_constant(array: npt.NDArray[Any], dtype: ir.DataType) -> str:
    """Why `array` cannot be stored as `dtype`, empty when it can. Infinite elements are what they are in any type."""
    half, finite = HALF[dtype], array[np.isfinite(array)]
    if float(np.abs(finite).max(initial=0.0)) > half.high:
        return f"exceeds {dtype.name.lower()}"
    with np.errstate(under="ignore"):
        lost = finite - finite.astype(dtype.numpy()).astype(np.float32)
    if float(np.linalg.norm(lost)) > 2.0**-half.mantissa_bits * float(np.linalg.norm(finite)):
        return f"is below what {dtype.name.lower()} resolves"
    return ""


def unfit_range(seen: TensorRange, dtype: ir.DataType) -> str:
    """Why an activation cannot be `dtype`, empty when it can."""
    half, most = HALF[dtype], max(abs(seen.low), abs(seen.high))
    if not _MARGIN * most <= half.high:
        return f"reaches {most:.3g}"
    if 0 < seen.mean_magnitude < 2.0**half.lowest_exponent:
        return f"has magnitude {seen.mean_magnitude:.2g} on average"
    return ""


def origins(value: ir.Value) -> set[ir.Value]:
    """The values whose numbers `value` holds, or whose range holds those of `value`."""
    found, waiting = set[ir.Value](), [value]
    while waiting:
        current = waiting.pop()
        producer = current.producer()
        inside = producer is not None and producer.op_type in _WITHIN_INPUTS and producer.domain == ""
        sources = [v for v in producer.inputs if is_float32(v) and v is not None] if inside and producer else []
        if sources and not any(map(is_constant, sources)):
            waiting += sources
        else:
            found.add(current)
    return found


def observed_ranges(model: ir.Model, values: Collection[ir.Value], context: CompileContext) -> StatisticsTable:
    """The ranges of the origins of `values` in `model` as it is, over the held-out samples; empty without samples.

    The graph at the end of a recipe has tensors that no calibration has seen, so it is observed itself; where it
    cannot run on this machine, the float model stands in with the tensors that it has too.

    Raises:
        DataError: the model cannot run on a sample, or a tensor becomes NaN.
    """
    names = {name_of(origin) for value in values for origin in origins(value)}
    if not context.held_out or not names:
        return StatisticsTable()
    if not_on_the_cpu(model) and why_not_loaded(context.target.providers[0]):
        if context.unquantized is None:
            return StatisticsTable()
        model = context.unquantized
        names &= {str(v.name) for v in (*model.graph.inputs, *(v for n in nodes(model) for v in n.outputs))}
    observation = observe(model, {name: [RANGE] for name in sorted(names)})
    tally = Tally(observation, judged=False)
    providers = context.target.providers
    with runnable(observation.model) as opened:
        for seen in read_samples(opened, context.held_out, providers, observation.read, session_entries(providers[0])):
            tally.add(seen)
    return tally.table()
