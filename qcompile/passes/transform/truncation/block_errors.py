"""What truncating each layer does to the results of its block, for every rank.

    e(r) = e(r_0) E(r) / E(r_0)     E: the layer's own error, by its spectrum;  e(r_0): that of the block, measured

One run of the block for each way of writing a layer says how much of the layer's error reaches what later blocks read,
relative to that; the spectrum says how it grows as the rank falls. So layers of all blocks are told apart by one
measure (relative_error.py), and none needs a trial for each rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.block_walker import BlockWalker, Visit
from qcompile.compiler.context import CompileContext
from qcompile.compiler.layer_grams import LayerInputs, source_of
from qcompile.compiler.linear_layers import LinearLayer
from qcompile.compiler.passes import Pass
from qcompile.compiler.weight_trials import errors_with
from qcompile.passes.transform.truncation.fit import Method, decomposition
from qcompile.passes.transform.truncation.thin_forms import ThinForm
from qcompile.runtime.device import fetch

Errors = npt.NDArray[np.float64]
Forms = Mapping[LinearLayer, Sequence[ThinForm]]


def block_errors(
    forms: Forms,
    model: ir.Model,
    context: CompileContext,
    inputs: LayerInputs,
    *,
    by: Pass,
    method: Method,
    damping: float,
    keep: float,
) -> dict[tuple[LinearLayer, ThinForm], Errors]:
    """The error of the block for each rank from 0 on, of each way to write each layer.

    Args:
        keep: the share of its weights that a layer has in the trial.
    """
    found: dict[tuple[LinearLayer, ThinForm], Errors] = {}
    for visit in BlockWalker(model, context, inputs.samples, method=by):
        inside = [layer for layer in forms if layer.name in visit.block.nodes]
        if inside:
            work = partial(_of_block, {x: forms[x] for x in inside}, visit, inputs, method, damping, keep)
            errors = visit.once(work)
            found |= {(layer, form): errors[_key(layer, form)] for layer in inside for form in forms[layer]}
    return found


def _of_block(
    forms: Forms, visit: Visit, inputs: LayerInputs, method: Method, damping: float, keep: float
) -> dict[str, Errors]:
    grams = inputs.grams([layer.node for layer in forms], visit)
    found = {}
    for layer, ways in forms.items():
        weight = visit.device.put(layer.matrix())
        for form in ways:
            directions = decomposition(form, weight, grams[source_of(layer.node)], method, damping)
            own = np.asarray(fetch(directions.errors))
            rank = min(int(keep * weight.size / form.size(1)), _last_lossy(own))
            trial = fetch(form.expanded(directions.truncated(rank)).product)
            [measured] = errors_with(visit, [layer.name], [{layer.name: visit.device.put(layer.stored(trial))}])
            found[_key(layer, form)] = own * (measured / own[rank] if own[rank] > 0 else 0.0)
    return found


def _last_lossy(errors: Errors) -> int:
    """The largest rank that loses more than what rounding to float32 does."""
    return int(np.flatnonzero(errors >= _ROUNDING * errors[0])[-1])


_ROUNDING = 1e-9
"""Share of a layer's energy."""


def _key(layer: LinearLayer, form: ThinForm) -> str:
    return f"{layer.name} {form.name}"
