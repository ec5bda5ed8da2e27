"""Put statistics into the graph: a copy of the model whose outputs are what they say of its tensors.

A tensor inside a branch of an If is reduced where it lies; the branch that was not taken answers
with what is said of no elements. Inside a Loop the reductions are carried from iteration to iteration
and merged there. So one run of the model observes every tensor, whatever path it takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.compiler.graph import add_initializer, opset
from qcompile.compiler.histogram import HALF, HISTOGRAM, LOWEST
from qcompile.compiler.mask import Mask
from qcompile.compiler.reductions import Part, Reductions
from qcompile.compiler.statistics import Statistic, Vector

OUTPUT = "statistics"
"""The first output of the copy: all float parts one after the other."""


@dataclass(frozen=True, eq=False)
class Block:
    """Vectors of one statistic and one length, which merge together.

    Attributes:
        tensors: whose vectors they are.
        at: where their numbers lie in OUTPUT, shape [tensors, numbers].
        codes: for histograms, the outputs that hold the codes or their counts.
    """

    statistic: Statistic
    tensors: tuple[str, ...]
    at: npt.NDArray[np.intp]
    codes: tuple[int, ...] = ()

    @property
    def identity(self) -> Vector:
        channels = self.statistic.channels(self.at.shape[1])
        return np.tile(self.statistic.identity(channels), (len(self.tensors), 1))

    def read(self, numbers: Vector, outputs: Sequence[npt.NDArray[Any]]) -> Vector:
        """The vectors [tensors, length] that one run saw."""
        seen = numbers[self.at]
        if not self.codes:
            return self.statistic.lift(seen)
        counts = np.array([_counts(outputs[i]) for i in self.codes])
        exponents = np.where(counts.any(axis=1, keepdims=True), 1 - np.frexp(seen)[1], LOWEST)
        return np.hstack([exponents, counts])


@dataclass(frozen=True, eq=False)
class Observation:
    """A model that yields statistics.

    Attributes:
        blocks: the statistics that `read` finds in its outputs.
        uncounted: tensors without the histogram that was wanted: they lie in the body of a Loop.
        unmasked: tensors that are observed whole although there is a mask.
    """

    model: ir.Model
    blocks: list[Block]
    uncounted: list[str]
    unmasked: list[str]

    def read(self, outputs: Sequence[npt.NDArray[Any]]) -> list[Vector]:
        """The vectors of each block that one run saw."""
        numbers = outputs[0].astype(np.float64)
        return [block.read(numbers, outputs) for block in self.blocks]


_Found = dict[tuple[str, Statistic], list[Part]]


def observe(
    model: ir.Model,
    wanted: Mapping[str, Sequence[Statistic]],
    *,
    mask: Mask | None = None,
    on_device: bool = False,
) -> Observation:
    """A copy of `model` that yields the statistics only.

    Args:
        wanted: statistics to observe, by tensor name.
        mask: an input of `model`; positions where it is false are left out.
        on_device: count histograms in the graph, on the provider's device.

    Returns:
        The observation; its blocks miss tensors that do not exist or lie in the body of a Scan, and
        channels of unknown number.
    """
    copy = model.clone()
    if mask is not None:
        mask = Mask(next(v for v in copy.graph.inputs if v.name == mask.value.name), mask.dimensions)
    observer = _Observer(wanted, Reductions(opset(copy), mask, on_device))
    found = observer.graph(copy.graph)
    copy.graph.outputs.clear()
    parts = [p for made in found.values() for p in made]
    if parts:
        joined = observer.reductions.append(copy.graph, "Concat", [p.value for p in parts if not p.is_codes], axis=0)
        joined.name, joined.type = OUTPUT, ir.TensorType(ir.DataType.FLOAT)
        joined.shape = ir.Shape([sum(p.nothing.size for p in parts if not p.is_codes)])
        copy.graph.outputs.extend([joined, *(p.value for p in parts if p.is_codes)])
    return Observation(copy, _blocks(found), observer.uncounted, list(dict.fromkeys(observer.unmasked)))


class _Observer:
    """Walks the graphs of a model and appends reductions."""

    def __init__(self, wanted: Mapping[str, Sequence[Statistic]], reductions: Reductions) -> None:
        self.wanted, self.reductions = wanted, reductions
        self.uncounted: list[str] = []
        self.unmasked: list[str] = []
        self.loops = 0

    def graph(self, graph: ir.Graph) -> _Found:
        found: _Found = {}
        for node in list(graph):
            if node.op_type == "If":
                found |= self.branches(node)
            elif node.op_type == "Loop":
                found |= self.loop(graph, node)
        mask = self.reductions.mask
        for value in [*graph.inputs, *(v for node in graph for v in node.outputs)]:
            name = value.name or ""
            for statistic in self.wanted.get(name, ()):
                if self.loops and statistic is HISTOGRAM:
                    self.uncounted.append(name)
                    continue
                parts = self.reductions.parts(graph, value, statistic)
                if parts is not None:
                    found[name, statistic] = [_named(p, f"{name}@{statistic.kind}.{p.name}") for p in parts]
                    if mask is not None and mask.places(value) is None:
                        self.unmasked.append(name)
        return found

    def branches(self, node: ir.Node) -> _Found:
        bodies = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
        seen = [self.graph(body) for body in bodies]
        found: _Found = {}
        for key in dict.fromkeys(k for s in seen for k in s):
            results = []
            for i, part in enumerate(next(s[key] for s in seen if key in s)):
                name = _name(node, key, part)
                for body, s in zip(bodies, seen, strict=True):
                    body.outputs.append(
                        s[key][i].value if key in s else self.untaken(body, part, f"{name}.{body.name}")
                    )
                results.append(_moved(part, _new_output(node, len(node.outputs)), name))
            found[key] = results
        return found

    def untaken(self, body: ir.Graph, part: Part, name: str) -> ir.Value:
        """What the branch says that does not hold the tensor."""
        nothing = add_initializer(body, name, part.nothing)
        return _moved(part, self.reductions.append(body, "Identity", [nothing]), f"{name}.out").value

    def loop(self, graph: ir.Graph, node: ir.Node) -> _Found:
        body = node.attributes["body"].as_graph()
        self.loops += 1
        inside = self.graph(body)
        self.loops -= 1
        carried = len(body.inputs) - 2
        found: _Found = {}
        for key, parts in inside.items():
            results = []
            for part in parts:
                name = _name(node, key, part)
                before = _moved(part, ir.Value(), f"{name}.before").value
                merged = self.reductions.append(body, part.merge, [before, part.value])
                body.inputs.append(before)
                body.outputs.insert(1 + carried, _moved(part, merged, f"{name}.merged").value)
                node.resize_inputs(2 + carried + 1)
                node.replace_input_with(2 + carried, add_initializer(graph, f"{name}.nothing", part.nothing))
                results.append(_moved(part, _new_output(node, carried), name))
                carried += 1
            found[key] = results
        return found


def _blocks(found: _Found) -> list[Block]:
    """The vectors in `found`, grouped by statistic and length, in the order of the outputs."""
    grouped: dict[tuple[Statistic, int], list[tuple[str, int, int]]] = {}
    start, codes = 0, 0
    for (tensor, statistic), parts in found.items():
        length = sum(p.nothing.size for p in parts if not p.is_codes)
        codes += any(p.is_codes for p in parts)
        grouped.setdefault((statistic, length), []).append((tensor, start, codes))
        start += length
    return [
        Block(
            statistic,
            tuple(tensor for tensor, _, _ in members),
            np.array([np.arange(begin, begin + length) for _, begin, _ in members]),
            tuple(output for _, _, output in members) if statistic is HISTOGRAM else (),
        )
        for (statistic, length), members in grouped.items()
    ]


def _counts(codes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """How often each code occurs, from the lowest; `codes` may be these counts already."""
    if codes.dtype != np.int16:
        return codes
    wrapped = np.bincount(codes.view(np.uint16), minlength=1 << 16)  # negative codes lie at the end
    return np.concatenate([wrapped[-HALF:], wrapped[:HALF]])


def _name(node: ir.Node, key: tuple[str, Statistic], part: Part) -> str:
    return f"{node.name}.{key[0]}@{key[1].kind}.{part.name}"


def _named(part: Part, name: str) -> Part:
    return _moved(part, part.value, name)


def _moved(part: Part, value: ir.Value, name: str) -> Part:
    """The same part as another value, which gets its name, type and shape."""
    codes = part.nothing.size == 0
    value.name, value.type = name, ir.TensorType(ir.DataType.from_numpy(part.nothing.dtype))
    value.shape = ir.Shape([None if codes else part.nothing.size])
    return Part(part.name, value, part.nothing, part.merge)


def _new_output(node: ir.Node, position: int) -> ir.Value:
    """Insert an output at `position`; the outputs behind it move up with their names and uses."""
    node.resize_outputs(len(node.outputs) + 1)
    for i in range(len(node.outputs) - 1, position, -1):
        old, new = node.outputs[i - 1], node.outputs[i]
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.name = None
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    return node.outputs[position]
