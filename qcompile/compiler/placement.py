"""Placement as a minimum cut: which operations compute on codes, so that the whole graph takes least time.

Each operation reads float or codes (r) and writes float or codes (w); w = codes implies r = codes.
    time = sum over operations of time(form)
         + sum over tensors of q_t [written as float, some reader wants codes]
                             + d_t [written as codes, some reader wants float]
Every term is a function of two neighbours that costs only where they differ in one direction, so the
least time is a minimum s-t cut (source side: codes, sink side: float). Source: Picard and Ratliff,
"Minimum cuts and related problems", 1975. Times in ns, rounded to whole ns so that the result is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qcompile.compiler.plan import Form

if TYPE_CHECKING:
    import networkx as nx

    from qcompile.compiler.targets.table import Lowering

    Vertex = tuple[str, str]
    Network = nx.DiGraph[Vertex]

_CODES, _FLOAT = ("side", "codes"), ("side", "float")


@dataclass(frozen=True)
class Operation:
    """One candidate of the placement.

    Attributes:
        times: time in ns of each low-precision form that is open to it.
        reads: tensors that become codes when it leaves FLOAT.
        writes: the tensors it produces.
    """

    name: str
    float_time: float
    times: Mapping[Form, float]
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Conversion:
    """Time in ns to quantize and to dequantize one tensor."""

    quantize: float
    dequantize: float


@dataclass(frozen=True)
class Measured:
    """Times in ns that were taken on the device.

    Attributes:
        device: what they were taken on.
        operations: by the name of the operation's node, of each form, FLOAT among them; infinite where it does not
            run.
        conversions: by the name of the tensor.
        lowerings: by node and pattern, of units whose form has several.
        pace: time on the device for one ns of the target's table.
    """

    device: str
    operations: Mapping[str, Mapping[Form, float]]
    conversions: Mapping[str, Conversion]
    lowerings: Mapping[tuple[str, Lowering | None], float] = field(default_factory=dict)
    pace: float = 1.0


def place(
    operations: Sequence[Operation],
    conversions: Mapping[str, Conversion],
    float_readers: Iterable[str],
    kept_float: Iterable[str],
) -> dict[str, Form]:
    """The form of each operation that makes the total time least; ties go to codes.

    Args:
        conversions: for every tensor that an operation reads or writes.
        float_readers: tensors that something outside `operations` reads as float.
        kept_float: tensors that must never exist as codes.
    """
    import networkx as nx

    graph: Network = nx.DiGraph()
    graph.add_nodes_from([_CODES, _FLOAT])
    outside, pinned = set(float_readers), set(kept_float)
    for op in operations:
        _add_operation(graph, op, pinned)
    writer = {tensor: op for op in operations for tensor in op.writes}
    readers: dict[str, list[Operation]] = {}
    for op in operations:
        for tensor in dict.fromkeys(op.reads):
            readers.setdefault(tensor, []).append(op)
    for tensor, conversion in conversions.items():
        _add_tensor(graph, tensor, conversion, writer.get(tensor), readers.get(tensor, []), tensor in outside)
    flow = nx.algorithms.flow.boykov_kolmogorov
    _, (codes, _) = nx.minimum_cut(graph, _CODES, _FLOAT, flow_func=flow)
    return {op.name: _form(op, codes) for op in operations}


def _add_operation(graph: Network, op: Operation, pinned: set[str]) -> None:
    reads, writes = ("reads", op.name), ("writes", op.name)
    writable = pinned.isdisjoint(op.writes)
    full = next((op.times[f] for f in (Form.FULL, Form.PASS) if f in op.times and writable), None)
    inputs = op.times.get(Form.INPUTS)
    if (inputs is None and full is None) or pinned.intersection(op.reads):
        _edge(graph, reads, _FLOAT, None)
        _edge(graph, writes, _FLOAT, None)
        return
    _edge(graph, writes, reads, None)
    if full is None:
        _edge(graph, writes, _FLOAT, None)
        full = inputs
    if inputs is None:
        _edge(graph, reads, writes, None)
        inputs = full
    assert inputs is not None
    assert full is not None
    _unary(graph, reads, inputs - op.float_time)
    _unary(graph, writes, full - inputs)


def _unary(graph: Network, node: Vertex, extra: float) -> None:
    """`extra` ns more when `node` is on the side of the codes than when it is on the float side."""
    if extra > 0:
        _edge(graph, node, _FLOAT, extra)
    else:
        _edge(graph, _CODES, node, -extra)


def _add_tensor(
    graph: Network, tensor: str, cost: Conversion, writer: Operation | None, readers: list[Operation], outside: bool
) -> None:
    source = ("writes", writer.name) if writer else _FLOAT
    if readers:
        wanted = ("quantized", tensor)
        _edge(graph, wanted, source, cost.quantize)
        for reader in readers:
            _edge(graph, ("reads", reader.name), wanted, None)
    if writer and (readers or outside):
        wanted = ("dequantized", tensor)
        _edge(graph, source, wanted, cost.dequantize)
        for reader in readers:
            _edge(graph, wanted, ("reads", reader.name), None)
        if outside:
            _edge(graph, wanted, _FLOAT, None)


def _edge(graph: Network, a: Vertex, b: Vertex, capacity: float | None) -> None:
    """An edge of `capacity` ns (None: infinite); parallel edges add up."""
    if capacity is None:
        graph.add_edge(a, b)
        graph[a][b].pop("capacity", None)
    elif not graph.has_edge(a, b):
        graph.add_edge(a, b, capacity=round(capacity))
    elif "capacity" in graph[a][b]:
        graph[a][b]["capacity"] += round(capacity)


def _form(op: Operation, codes: set[Vertex]) -> Form:
    if ("reads", op.name) not in codes:
        return Form.FLOAT
    if ("writes", op.name) in codes:
        return Form.FULL if Form.FULL in op.times else Form.PASS
    return Form.INPUTS
