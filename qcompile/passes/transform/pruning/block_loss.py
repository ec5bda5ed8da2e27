"""What channels are worth to the results of their block: what their reader loses, scaled by how much of it gets there.

    importance_c = fluctuation_c * e_block / e_layer

fluctuation_c: what channel c is to the result of the layer that reads it (importance.py). One trial for each layer has
the less important half of its columns gone and the others refitted: e_layer is then the error of its result, e_block
that of what later blocks read (relative_error.py). A layer whose result drowns in a residual stream is told apart so
from one that is all there is; and layers of all blocks become comparable at the cost of a run of a block each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.block_walker import BlockWalker, Visit
from qcompile.compiler.gram import Gram
from qcompile.compiler.layer_grams import LayerInputs, source_of
from qcompile.compiler.linear_layers import LinearLayer
from qcompile.compiler.passes import Pass
from qcompile.compiler.refit import relative_error
from qcompile.compiler.weight_trials import errors_with
from qcompile.passes.transform.pruning.columns import refitted
from qcompile.passes.transform.pruning.importance import Vector, fluctuation
from qcompile.runtime.device import fetch

Columns = npt.NDArray[np.intp]

_ROUNDING = 1e-9
"""Share of a layer's energy below which nothing is lost."""


def block_losses(
    layers: Sequence[LinearLayer],
    columns: Mapping[str, Sequence[Columns]],
    model: ir.Model,
    inputs: LayerInputs,
    *,
    by: Pass,
) -> dict[str, list[Vector]]:
    """For each layer, by node, the importance of the channels of each group that it reads.

    Args:
        columns: for each group, the channel of each column of the layer's matrix; -1 for none.
    """
    found: dict[str, list[Vector]] = {}
    for visit in BlockWalker(model, inputs.context, inputs.samples, method=by):
        inside = [layer for layer in layers if layer.name in visit.block.nodes]
        grams = inputs.grams([layer.node for layer in inside], visit) if inside else {}
        for layer in inside:
            found[layer.name] = _of_layer(layer, columns[layer.name], grams[source_of(layer.node)], visit)
    return found


def _of_layer(layer: LinearLayer, groups: Sequence[Columns], gram: Gram, visit: Visit) -> list[Vector]:
    weight = visit.device.put(layer.matrix())
    covariance = gram.centred().matrix
    lost = [fluctuation(weight, covariance, columns, int(columns.max()) + 1) for columns in groups]
    kept = np.full(weight.shape[2], True)
    for columns, own in zip(groups, lost, strict=True):
        kept &= ~np.isin(columns, np.argsort(own, kind="stable")[: own.size // 2])
    trial = refitted(weight, gram, np.flatnonzero(kept))
    own_error = relative_error(weight, trial, gram)
    stored = visit.device.put(layer.stored(fetch(trial)))
    [error] = errors_with(visit, [layer.name], [{layer.name: stored}])
    return [own * (error / own_error if own_error > _ROUNDING else 0.0) for own in lost]
