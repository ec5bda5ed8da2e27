"""One sample at other sizes: batches and sequences repeat what is there, or end early.

points(model, path, None, [1, 8], [128])     four points for a decoder with a cache: prefill and decode
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompile.compiler.context import Sample
from qcompile.compiler.inputs import ModelInput, made_up, model_inputs, table_rows
from qcompile.errors import ModelError, UsageError
from qcompile.runtime.benchmark.results import Point
from qcompile.runtime.ports import Port
from qcompile.runtime.token_ports import MASK, POSITIONS, SEGMENTS, TOKENS, TokenPorts

_TOKENS = 32
"""Tokens where nobody says how many."""

Axes = dict[str, list[int]]


def points(
    model: ir.Model, path: Path, sample: Sample | None, batches: Sequence[int], sequences: Sequence[int]
) -> list[Point]:
    """`sample` at every batch and sequence, sequence by sequence.

    A decoder with a cache is run in two phases for each sequence: on all its tokens with an empty cache, and on the
    token behind them.

    Args:
        sample: one that fits the model; None: a made-up one.
        batches, sequences: empty to leave them as they are in the sample.

    Raises:
        UsageError: the model has no such dimension, or it cannot be told which it is.
    """
    inputs = model_inputs(model)
    random = np.random.default_rng(0)
    rows = table_rows(model)
    ports = _token_ports(inputs, model, path)
    if ports is not None and ports.caches and (sequences or sample is None):
        given = (
            sample[TOKENS][0] if sample else random.integers(0, rows.get(TOKENS, 2), max(sequences, default=_TOKENS))
        )
        read = list(_phases(ports, given, sequences or [_TOKENS]))
    else:
        sample = sample or made_up(inputs, random, rows)
        read = list(_stretched(inputs, sample, sequences, str(path)))
    if not batches:
        return read
    axes = _batch_axes(inputs, str(path))
    return [Point(_resized(p.sample, axes, size), size, p.sequence, p.phase) for p in read for size in batches]


def _token_ports(inputs: Sequence[ModelInput], model: ir.Model, path: Path) -> TokenPorts | None:
    """The ports of a model of tokens, None if it is none."""
    given = [
        Port(i.name, str(i.dtype), tuple(d if isinstance(d, int) else None for d in i.shape or ()))
        for i in inputs
        if i.required
    ]
    try:
        return TokenPorts.of(given, [str(value.name) for value in model.graph.outputs], str(path))
    except ModelError:
        return None


def _phases(ports: TokenPorts, tokens: np.ndarray, sequences: Sequence[int]) -> Iterator[Point]:
    for length in sequences:
        yield Point(ports.feed(np.resize(tokens, length), {}), 1, length, "prefill")
        yield Point(ports.feed(tokens[:1], ports.cache(length)), 1, length, "decode")


def _stretched(inputs: Sequence[ModelInput], sample: Sample, sequences: Sequence[int], where: str) -> Iterator[Point]:
    batch = next((array.shape[0] for array in sample.values() if array.ndim), 1)
    if not sequences:
        tokens = sample.get(TOKENS)
        yield Point(sample, batch, tokens.shape[1] if tokens is not None and tokens.ndim == 2 else None)
        return
    axes = _sequence_axes(inputs, where)
    for length in sequences:
        yield Point(_resized(sample, axes, length), batch, length)


def _batch_axes(inputs: Sequence[ModelInput], where: str) -> Axes:
    """First dimensions that are free, and those of the same name elsewhere."""
    first = {i.shape[0] for i in inputs if i.shape and isinstance(i.shape[0], str)}
    if not first:
        raise UsageError("the batch of the model is fixed", where=where, hint=_listed(inputs))
    named = first - {"?"}
    return {
        i.name: [axis for axis, d in enumerate(i.shape or ()) if d in named or (axis == 0 and d == "?")] for i in inputs
    }


def _sequence_axes(inputs: Sequence[ModelInput], where: str) -> Axes:
    """The free dimension behind the batch of tokens, or else of the only inputs of rank 2 or 3 that have one."""
    of_tokens = [i for i in inputs if i.name in (TOKENS, MASK, POSITIONS, SEGMENTS)]
    free = {
        (i.name, axis): dim
        for i in of_tokens or inputs
        for axis, dim in enumerate(i.shape or ())
        if axis and isinstance(dim, str) and len(i.shape or ()) in (2, 3)
    }
    names = set(free.values())
    if not free or (not of_tokens and (len(names) > 1 or ("?" in names and len(free) > 1))):
        what = "the model has no free sequence" if not free else "it cannot be told which dimension is the sequence"
        raise UsageError(what, where=where, hint=_listed(inputs))
    named = names - {"?"}
    return {
        i.name: [axis for axis, d in enumerate(i.shape or ()) if d in named or (i.name, axis) in free] for i in inputs
    }


def _resized(sample: Sample, axes: Axes, size: int) -> dict[str, np.ndarray]:
    """Along the axes the sample is repeated from its beginning, or cut."""
    found = dict(sample)
    for name, array in found.items():
        for axis in axes.get(name, ()):
            array = np.take(array, np.arange(size) % max(array.shape[axis], 1), axis)
        found[name] = np.ascontiguousarray(array)
    return found


def _listed(inputs: Sequence[ModelInput]) -> str:
    return "its inputs are " + "; ".join(str(i) for i in inputs)
