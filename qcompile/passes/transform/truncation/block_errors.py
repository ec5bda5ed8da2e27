"""What truncating each layer does to the results of its block, for every rank.

    e(r) = g E'(r) / E'(0)     g = e(r_0) / (E(r_0) / E(0))

E, the error of the layer's outputs, is a sum over the directions that are discarded, for every rank at once; E' is that
sum for samples which the directions were not found from, since few samples look as if few directions were enough.
e(r_0) is measured: one run of the block for each way of writing a layer says how much of the layer's error reaches
what later blocks read, relative to that (relative_error.py). So layers of all blocks are told apart by one measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Trial:
    """How layers are tried.

    Attributes:
        keep: the share of its weights that a layer has left.
        samples: how many samples the block is run on.
    """

    method: Method
    damping: float
    keep: float
    samples: int


def block_errors(
    forms: Forms, model: ir.Model, context: CompileContext, inputs: LayerInputs, *, by: Pass, trial: Trial
) -> dict[tuple[LinearLayer, ThinForm], Errors]:
    """The error of the block for each rank from 0 on, of each way to write each layer."""
    found: dict[tuple[LinearLayer, ThinForm], Errors] = {}
    walk = BlockWalker(model, context, inputs.samples, method=by) if forms else ()
    for visit in walk:
        inside = {layer: ways for layer, ways in forms.items() if layer.name in visit.block.nodes}
        if inside:
            errors = visit.once(partial(_of_block, inside, visit, inputs, trial))
            found |= {(layer, form): errors[_key(layer, form)] for layer, ways in inside.items() for form in ways}
    return found


def _of_block(forms: Forms, visit: Visit, inputs: LayerInputs, trial: Trial) -> dict[str, Errors]:
    halves = inputs.halves([layer.node for layer in forms], visit)
    found = {}
    for layer, ways in forms.items():
        weight = visit.device.put(layer.matrix())
        seen, unseen = (half[source_of(layer.node)] for half in halves)
        for form in ways:
            directions = decomposition(form, weight, seen, trial.method, trial.damping)
            parts = [np.asarray(fetch(directions.errors(form.metric(gram.matrix)))) for gram in (seen, unseen)]
            whole = parts[0] + parts[1]
            rank = min(int(trial.keep * np.prod(layer.shape) / form.size(1)), _last_lossy(whole))
            tried = layer.stored(fetch(form.expanded(directions.truncated(rank)).product))
            [error] = errors_with(visit, [layer.name], [{layer.name: visit.device.put(tried)}], trial.samples)
            reaches = error * whole[0] / whole[rank] if whole[rank] > 0 else 0.0
            found[_key(layer, form)] = reaches * parts[1] / max(parts[1][0], np.finfo(np.float64).tiny)
    return found


def _last_lossy(errors: Errors) -> int:
    """The largest rank that loses more than what rounding to float32 does."""
    return int(np.flatnonzero(errors >= _ROUNDING * errors[0])[-1])


_ROUNDING = 1e-9
"""Share of a layer's energy."""


def _key(layer: LinearLayer, form: ThinForm) -> str:
    return f"{layer.name} {form.name}"
