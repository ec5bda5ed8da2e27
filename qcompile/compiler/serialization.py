"""Hand a model of the IR to ONNX Runtime: as bytes while it fits, else as a file with external data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

_LARGEST_BYTES = 1 << 30  # protobuf ends at 2 GiB; half of it leaves room for the graph and a copy


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
    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.data")
        yield path
