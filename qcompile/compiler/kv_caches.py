"""Where a decoder keeps keys and values: inputs that hold the past, grown by the new tokens and returned.

    present = Concat(past, new)        past: a graph input, new: computed, present: a graph output
    _, present_key, present_value = GroupQueryAttention(..., past_key, past_value, ...)

Told by structure, whatever the names are. A cache is [batch, heads, tokens, columns], as attention wants it.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qcompile.compiler.graph import is_float32

HEADS, COLUMNS = 1, 3
"""The axes of a cache whose every index has a scale."""

_TOKENS = 2
_ATTENTION = "GroupQueryAttention"
_INPUTS, _OUTPUTS = (3, 4), (1, 2)


@dataclass(frozen=True, eq=False)
class KeyValueCache:
    """One cache of a model.

    Attributes:
        past, present: the input, and the output that it takes its next value from.
        node: what makes `present`.
        obstacle: why its codes could not take its place, empty when they can.
    """

    past: ir.Value
    present: ir.Value
    node: ir.Node
    obstacle: str

    @property
    def in_attention(self) -> bool:
        """Whether one operator reads and writes it, which has types of its own for a quantized cache."""
        return self.node.op_type == _ATTENTION

    @property
    def heads(self) -> int:
        return self._size(HEADS)

    @property
    def columns(self) -> int:
        return self._size(COLUMNS)

    @property
    def observed(self) -> ir.Value:
        """What shows the values of the new tokens: what a Concat appends, or all that an attention returns."""
        value = self.present if self.in_attention else self.node.inputs[1]
        assert value is not None
        return value

    def _size(self, axis: int) -> int:
        size = self.past.shape[axis] if self.past.shape is not None else None
        assert isinstance(size, int), self.obstacle
        return size


def find_caches(model: ir.Model) -> list[KeyValueCache]:
    """The caches of the main graph, in the order of the inputs."""
    found = []
    for value in model.graph.inputs:
        if value.is_initializer() or value.dtype is None or not value.dtype.is_floating_point():
            continue
        for node, position in value.uses():
            present = _present(node, position)
            if present is not None and present.is_graph_output():
                found.append(KeyValueCache(value, present, node, _obstacle(value, present, node)))
    return found


def _present(node: ir.Node, position: int) -> ir.Value | None:
    """What `node` makes of the past that it reads at `position`."""
    if node.op_type == "Concat" and node.domain == "":
        rank = len(node.outputs[0].shape) if node.outputs[0].shape is not None else 4
        appends = len(node.inputs) == 2 and position == 0 and node.attributes.get_int("axis", 0) % rank == _TOKENS
        new = node.inputs[1] if appends else None
        return node.outputs[0] if new is not None and new.producer() is not None else None
    if node.op_type == _ATTENTION and node.domain == "com.microsoft" and position in _INPUTS:
        output = _OUTPUTS[_INPUTS.index(position)]
        return node.outputs[output] if len(node.outputs) > output else None
    return None


def _obstacle(past: ir.Value, present: ir.Value, node: ir.Node) -> str:
    if not is_float32(past) and node.op_type != _ATTENTION:
        return "it is not float32"
    sizes = [past.shape[axis] for axis in (HEADS, COLUMNS)] if past.shape is not None and len(past.shape) == 4 else []
    if not sizes or not all(isinstance(size, int) for size in sizes):
        return "its numbers of heads and columns are not known"
    if any(reader is not node and reader.op_type != "Shape" for reader, _ in past.uses()):
        return "another operator reads the past as well"
    if node.op_type == _ATTENTION and present.uses():
        return "another operator reads what the attention returns"
    return ""
