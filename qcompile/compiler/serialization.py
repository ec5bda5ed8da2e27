"""Hand a model of the IR to ONNX Runtime: as bytes while it fits, else as a file with external data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from qcompile.compiler.scratch import scratch_folder

_LARGEST_BYTES = 64 << 20
"""Initializer bytes that are handed over in memory: they lie there four times before the session is open."""

PAGE = 4096
"""Where tensors of external data begin, so that a runtime can map them."""


def initializer_bytes(model: ir.Model) -> int:
    """Bytes of all initializers, subgraphs included."""
    found = {id(v.const_value): v.const_value.nbytes for v in _initializers(model) if v.const_value is not None}
    return sum(found.values())


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from graph.initializers.values()


@contextmanager
def runnable(model: ir.Model) -> Iterator[bytes | Path]:
    """What a session can be opened from; a temporary file is removed afterwards."""
    if initializer_bytes(model) < _LARGEST_BYTES:
        yield ir.to_proto(model).SerializeToString()
        return
    with in_a_file(model) as path:
        yield path


@contextmanager
def in_a_file(model: ir.Model) -> Iterator[Path]:
    """A temporary file of `model`, its weights beside it."""
    with tempfile.TemporaryDirectory(prefix="qcompile-", dir=scratch_folder()) as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.data", alignment=PAGE, align_threshold=PAGE)
        yield path
