"""Matching the operations of two models: by provenance, by name, by outputs, by structure.

The surest evidence is used first:

1. provenance that names several operations: fused;
2. provenance, or the same name with the same operator; what else was made of an operation stands beside that;
3. the same output name and operator;
4. the same operator with the same neighbours, from the inputs on and from the outputs back;
5. what is left between a match and a value that has the same name on both sides belongs to it:
   an activation that was absorbed, or the operations that one was expanded into.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qcompile.compiler.diffing.flat import FlatModel, Operation
from qcompile.compiler.plan import Form

_ENDINGS = ("_output_quantized", "_quantized", "_quant", "_QuantizeLinear_Input")
_MOST_ROUNDS = 24


@dataclass(eq=False)
class Group:
    """Operations of `a` and the operations of `b` that stand for them, in order; neither list is empty."""

    befores: list[Operation]
    afters: list[Operation]


class Matching:
    """The correspondence as it grows.

    Attributes:
        group: operation (of either model) -> its group; operations without a match are free.
    """

    def __init__(self, a: FlatModel, b: FlatModel) -> None:
        self.a, self.b = a, b
        self.groups: list[Group] = []
        self.group: dict[Operation, Group] = {}

    def join(self, before: Iterable[Operation], after: Operation) -> None:
        members = [op for op in before if op not in self.group]
        if members and after not in self.group:
            group = Group(members, [after])
            self.groups.append(group)
            self.group.update(dict.fromkeys([*members, after], group))

    def free(self, flat: FlatModel) -> list[Operation]:
        return [op for op in flat.operations if op not in self.group]


def match(a: FlatModel, b: FlatModel) -> Matching:
    """Match the operations of `a` with those of `b`."""
    matching = Matching(a, b)
    _by_keys(matching)
    _by_unique_feature(matching, _outputs)
    hashes = _forward_hashes(a) | _forward_hashes(b)
    _in_equal_groups(matching, lambda op: hashes[op])
    _by_neighbours(matching)
    _absorb(matching, a, b)
    _absorb(matching, b, a)
    return matching


def _by_keys(matching: Matching) -> None:
    """Provenance and names. An operation without provenance counts only with an operation of its family."""
    known: dict[str, list[Operation]] = defaultdict(list)
    for op in matching.a.operations:
        for key in op.keys:
            known[key].append(op)
    for op in matching.b.operations:
        if len(op.keys) > 1:
            matching.join([f for key in op.keys for f in known.get(key, []) if f.scope == op.scope or op.traced], op)
    single = [op for op in matching.b.operations if len(op.keys) == 1]
    for wanted_family in (True, False):
        for op in single:
            found = _lookup(known, op.keys[0], op)
            if len(found) == 1 and found[0] not in matching.group:
                same = found[0].family == op.family
                if same if wanted_family else op.traced:
                    matching.join(found, op)
    _beside(matching, known)


def _beside(matching: Matching, known: Mapping[str, Sequence[Operation]]) -> None:
    """Operations made of one that others stand for too, such as the branch beside a layer: on codes they come first."""
    for op in matching.free(matching.b):
        sources = [found for key in op.keys for found in known.get(key, [])] if op.traced else []
        groups = {matching.group[source] for source in sources if source in matching.group}
        if len(groups) == 1:
            [group] = groups
            leads = op.form != Form.FLOAT and group.afters[0].form == Form.FLOAT
            group.afters.insert(0 if leads else len(group.afters), op)
            matching.group[op] = group


def _lookup(known: dict[str, list[Operation]], key: str, op: Operation) -> list[Operation]:
    found = known.get(key, [])
    if not found and not op.traced:
        found = next((known[bare] for bare in _bare(key) if bare in known), [])
    return found if len(found) == 1 else [f for f in found if f.scope == op.scope and f.family == op.family]


def _bare(name: str) -> list[str]:
    """`name` without what quantization tools append."""
    return [name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)]


def _outputs(op: Operation) -> Hashable:
    """The name of the first output and the operator; tools that write QLinear forms append to the name."""
    name = op.node.outputs[0].name if op.node.outputs else None
    return (op.family, next(iter(_bare(name)), name)) if name else None


def _by_unique_feature(matching: Matching, feature: Callable[[Operation], Hashable]) -> int:
    """Join operations whose feature occurs once among the free ones on each side."""
    groups_a, groups_b = _grouped(matching.free(matching.a), feature), _grouped(matching.free(matching.b), feature)
    joined = 0
    for key, members in groups_b.items():
        if len(members) == 1 and len(groups_a.get(key, [])) == 1:
            matching.join(groups_a[key], members[0])
            joined += 1
    return joined


def _in_equal_groups(matching: Matching, feature: Callable[[Operation], Hashable]) -> int:
    """Join operations with the same feature in graph order, where both sides have equally many."""
    groups_a, groups_b = _grouped(matching.free(matching.a), feature), _grouped(matching.free(matching.b), feature)
    joined = 0
    for key, members in groups_b.items():
        if len(members) == len(groups_a.get(key, [])):
            for before, after in zip(groups_a[key], members, strict=True):
                matching.join([before], after)
                joined += 1
    return joined


def _grouped(operations: list[Operation], feature: Callable[[Operation], Hashable]) -> dict[Hashable, list[Operation]]:
    groups: dict[Hashable, list[Operation]] = defaultdict(list)
    for op in operations:
        key = feature(op)
        if key is not None:
            groups[key].append(op)
    return groups


def _forward_hashes(flat: FlatModel) -> dict[Operation, int]:
    """A number for what each operation computes from the graph's inputs: operators and shapes of constants."""
    hashes: dict[Operation, int] = {}
    places = {value: ("input", i) for i, value in enumerate(flat.model.graph.inputs)}
    for op in flat.operations:
        read: list[Hashable] = []
        for value in op.data:
            producer = flat.producer(value)
            if producer is not None:
                outputs = list(producer.node.outputs)
                read.append((hashes.get(producer, 0), outputs.index(value)))
            else:
                read.append(places.get(value, "body input"))
        weights = tuple(_shape(v) for v in op.constants[:1])
        hashes[op] = hash((op.family, len(op.scope), tuple(read), weights))
    return hashes


def _shape(value: ir.Value) -> Hashable:
    return tuple(str(d) for d in value.shape) if value.shape is not None else None


def _by_neighbours(matching: Matching) -> None:
    """Let matches spread along edges until nothing new is found."""
    flats = dict.fromkeys(matching.a.operations, matching.a) | dict.fromkeys(matching.b.operations, matching.b)
    consumers = _consumers(matching.a) | _consumers(matching.b)

    def upstream(op: Operation) -> Hashable:
        producers = [flats[op].producer(v) for v in op.data]
        groups = [id(matching.group.get(p)) if p in matching.group else p for p in producers]
        unknown = any(p is not None and p not in matching.group for p in producers)
        return None if not groups or unknown else (op.family, tuple(groups))

    def downstream(op: Operation) -> Hashable:
        readers = consumers.get(op, [])
        unknown = any(c not in matching.group for c in readers)
        return None if not readers or unknown else (op.family, tuple(sorted(id(matching.group[c]) for c in readers)))

    for _ in range(_MOST_ROUNDS):
        if not _in_equal_groups(matching, upstream) + _in_equal_groups(matching, downstream):
            return


def _absorb(matching: Matching, here: FlatModel, there: FlatModel) -> None:
    """Give free operations of `here` to the group whose result they finish.

    A group that produces a value on the other side, and free operations that produce the value of the
    same name here from what the group computes here: they are part of it.
    """
    results = {name: op for op in there.operations if op in matching.group for name in _result_names(op)}
    for op in reversed(here.operations):
        owner = next((results[n] for n in _result_names(op) if n in results), None)
        if op in matching.group or owner is None:
            continue
        group = matching.group[owner]
        members = group.befores if here is matching.a else group.afters
        path, reached = _free_ancestors(matching, here, op)
        if reached and reached <= set(members):
            members += sorted(path, key=lambda o: o.index)
            matching.group.update(dict.fromkeys(path, group))


def _result_names(op: Operation) -> list[str]:
    name = (op.node.outputs[0].name or "") if op.node.outputs else ""
    return [name, *_bare(name)] if name else []


def _free_ancestors(matching: Matching, flat: FlatModel, op: Operation) -> tuple[set[Operation], set[Operation]]:
    """`op` with the free operations that feed it, and the matched operations where that ends."""
    path, reached, waiting = {op}, set(), [op]
    while waiting:
        for producer in map(flat.producer, waiting.pop().data):
            if producer in matching.group:
                reached.add(producer)
            elif producer is not None and producer not in path:
                path.add(producer)
                waiting.append(producer)
    return path, {r for r in reached if r is not None}


def _consumers(flat: FlatModel) -> dict[Operation, list[Operation]]:
    found: dict[Operation, list[Operation]] = defaultdict(list)
    for op in flat.operations:
        for value in op.data:
            if (producer := flat.producer(value)) is not None:
                found[producer].append(op)
    return found
