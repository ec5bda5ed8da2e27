"""What a decoder's file stores for the weights of its linear layers: codes, scales and zero points together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

_LARGE = 1 << 20


@dataclass(frozen=True)
class StoredBytes:
    """Bytes of constants.

    Attributes:
        layers: what linear layers read, the head apart.
        head: what the layer of the logits reads, the table of words too where both share it.
    """

    layers: int
    head: int


def stored_bytes(file: Path) -> StoredBytes:
    """Look through a file. Norms and other small constants count to the layers; tables that are looked up do not."""
    model = ir.load(file)
    sizes = {v: v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None}
    head = _head(next(v for v in model.graph.outputs if v.name == "logits"), sizes)
    layers = [v for v in sizes if v not in head and not all(map(_looks_up, _readers(v, sizes)))]
    return StoredBytes(sum(sizes[v] for v in layers), sum(sizes[v] for v in head))


def _head(logits: ir.Value, sizes: dict[ir.Value, int]) -> set[ir.Value]:
    """Constants of the last node on the way to the logits that has large ones."""
    value: ir.Value | None = logits
    while value is not None and (node := value.producer()) is not None:
        found = {c for v in node.inputs if v is not None for c in _constants(v, sizes) or ()}
        if sum(sizes[v] for v in found) >= _LARGE:
            return found
        value = next((v for v in node.inputs if v is not None and _constants(v, sizes) is None), None)
    return set()


def _constants(value: ir.Value, sizes: dict[ir.Value, int]) -> set[ir.Value] | None:
    """The initializers that `value` is made of, None where it depends on an input."""
    if value in sizes:
        return {value}
    node = value.producer()
    if node is None:
        return None
    found: set[ir.Value] = set()
    for given in node.inputs:
        part = _constants(given, sizes) if given is not None else set()
        if part is None:
            return None
        found |= part
    return found


def _readers(value: ir.Value, sizes: dict[ir.Value, int]) -> Iterator[ir.Node]:
    """Nodes that read a constant, behind those that only unpack it."""
    for node in value.consumers():
        if all(given is None or _constants(given, sizes) is not None for given in node.inputs):
            for output in node.outputs:
                yield from _readers(output, sizes)
        else:
            yield node


def _looks_up(node: ir.Node) -> bool:
    return node.op_type in ("Gather", "GatherBlockQuantized")
