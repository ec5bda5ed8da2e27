"""A block with other weights in some of its layers: how far that moves its results.

The layers and all behind them are one model whose inputs are the weights, so one session tries any number of
candidates, and what lies before the layers is computed once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.compiler.block_walker import Visit
from qcompile.compiler.blocks import extract, reads
from qcompile.compiler.graph import is_constant, name_of
from qcompile.compiler.relative_error import relative_error
from qcompile.runtime.arrays import dtype_name

Array = Any  # numpy.ndarray or torch.Tensor
Weights = Mapping[str, Array]


def errors_with(
    visit: Visit, layers: Collection[str], candidates: Iterable[Weights], samples: int | None = None
) -> list[float]:
    """The error of the float block's results for each candidate, which holds a weight for each of `layers`, by node,
    in float32.

    Args:
        samples: how many samples, the first, are tried; left out, all.
    """
    behind, given, entering = _behind(visit, layers)
    known, exact = (list(islice(v, samples)) for v in (visit.float_values(entering), visit.float_outputs))
    for value in behind.graph.inputs:
        if value.type is None:
            value.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype_name(known[0][name_of(value)]))))

    def feeds() -> Iterator[dict[str, Array]]:
        for weights in candidates:
            inputs = {name: weights[node] for node, name in given.items()}
            yield from ({**values, **inputs} for values in known)

    outputs, names = visit.run_float(behind, feeds()), [name_of(v) for v in behind.graph.outputs]
    errors = []
    while tried := list(islice(outputs, len(known))):
        errors.append(relative_error(exact, tried, names))
    return errors


def _behind(visit: Visit, layers: Collection[str]) -> tuple[ir.Model, dict[str, str], list[str]]:
    """`layers` of the block and all that depends on them.

    Returns:
        The model; the input that stands for the weight of each layer, by node; the activations it reads.
    """
    copy = visit.model.clone()
    given: dict[str, str] = {}
    reached: dict[ir.Value, None] = {}
    entering: dict[ir.Value, None] = {}
    for node in copy.graph:
        if node.name in layers:
            old = node.inputs[1]
            assert old is not None
            weight = ir.Value(name=f"weight of {node.name}", shape=old.shape, type=old.type)
            copy.graph.inputs.append(weight)
            node.replace_input_with(1, weight)
            given[str(node.name)] = name_of(weight)
            reached[weight] = None
        values = list(reads(node))
        if any(v in reached for v in values):
            entering.update(dict.fromkeys(v for v in values if v not in reached and not is_constant(v)))
            reached.update(dict.fromkeys(node.outputs))
    activations = [name_of(v) for v in entering]
    returned = [name_of(v) for v in copy.graph.outputs if v in reached]
    outputs = [name for name in returned if name in visit.results] or returned
    return extract(copy, [*activations, *given.values()], outputs), given, activations
