"""What changed from one ONNX file to another: by meaning, not by text.

Works on any two ONNX files. Operations are matched by provenance (an artifact of qcompile and its
float model, or two artifacts), else by name and structure; conversions (QuantizeLinear and its kin)
are seen through, so that a quantized layer is one changed row and not five new nodes.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path

import onnx_ir as ir
from pydantic import BaseModel, Field

from qcompile.compiler.diffing.flat import FlatModel, Operation, flatten, is_constant
from qcompile.compiler.diffing.match import Group, Matching, match
from qcompile.compiler.diffing.tensors import TensorChange, TensorEvent, tensor_changes
from qcompile.compiler.inspection import describe_value, file_bytes
from qcompile.compiler.plan import Form
from qcompile.compiler.reading import read_structure

__all__ = ["Change", "Diff", "NodeChange", "NodeRef", "Side", "TensorChange", "TensorEvent", "diff"]


class Change(StrEnum):
    """What happened to an operation."""

    QUANTIZED = "quantized"
    FLOAT_AGAIN = "float again"
    FUSED = "fused"
    EXPANDED = "expanded"
    REPLACED = "replaced"
    RETUNED = "attributes changed"
    MOVED = "moved"
    ADDED = "added"
    REMOVED = "removed"


class NodeRef(BaseModel):
    """An operation in one of the files. `scope` names the control-flow nodes it lies in."""

    name: str
    op_type: str
    form: str
    scope: str = ""


class NodeChange(BaseModel):
    """Operations of the first file and those of the second that stand for them.

    `changes` is empty when nothing changed; `before` is empty for an added operation, `after` for a
    removed one.
    """

    before: list[NodeRef] = Field(default_factory=list)
    after: list[NodeRef] = Field(default_factory=list)
    changes: list[Change] = Field(default_factory=list)
    detail: str = ""


class Side(BaseModel):
    """One file as a whole. `nodes` counts every node, `conversions` those that convert to or from codes."""

    path: str
    file_bytes: int
    ir_version: int
    opset: int
    producer: str
    nodes: int
    conversions: dict[str, int]
    weight_bytes: int
    operators: dict[str, int]
    inputs: list[str]
    outputs: list[str]


class Diff(BaseModel):
    """The difference of two files: every operation in order, and the stored tensors that differ."""

    before: Side
    after: Side
    nodes: list[NodeChange]
    tensors: list[TensorChange]
    unchanged_tensors: int

    @property
    def counts(self) -> dict[Change, int]:
        """How many operations each change happened to, the most frequent first."""
        return dict(Counter(c for n in self.nodes for c in n.changes).most_common())

    @property
    def unchanged(self) -> int:
        """How many operations are as they were."""
        return sum(not n.changes for n in self.nodes)

    @property
    def identical(self) -> bool:
        """No operation, stored tensor, input or output differs."""
        return (
            not self.counts
            and not self.tensors
            and (self.before.inputs, self.before.outputs, self.before.conversions)
            == (self.after.inputs, self.after.outputs, self.after.conversions)
        )


def diff(a: Path, b: Path) -> Diff:
    """Compare the model at `a` with the one at `b`.

    Raises:
        ModelError: one of them cannot be read.
    """
    flat_a, flat_b = flatten(read_structure(a)), flatten(read_structure(b))
    matching = match(flat_a, flat_b)
    tensors, same = tensor_changes(matching)
    return Diff(
        before=_side(a, flat_a),
        after=_side(b, flat_b),
        nodes=_in_order(matching),
        tensors=tensors,
        unchanged_tensors=same,
    )


def _side(path: Path, flat: FlatModel) -> Side:
    from qcompile.compiler.serialization import initializer_bytes

    model = flat.model
    operators = Counter(node.op_type for node in model.graph.all_nodes())
    return Side(
        path=str(path),
        file_bytes=file_bytes(path, model),
        ir_version=model.ir_version or 0,
        opset=model.graph.opset_imports.get("", 0),
        producer=f"{model.producer_name or ''} {model.producer_version or ''}".strip(),
        nodes=sum(operators.values()),
        conversions=flat.conversions,
        weight_bytes=initializer_bytes(model),
        operators=dict(operators.most_common()),
        inputs=[_value(v) for v in model.graph.inputs if not v.is_initializer()],
        outputs=[_value(v) for v in model.graph.outputs],
    )


def _value(value: ir.Value) -> str:
    """'input_ids: int64 batch x 128'."""
    described = describe_value(value)
    dims = "of unknown rank" if described.dims is None else " x ".join(described.dims) or "scalar"
    return f"{described.name}: {described.dtype} {dims}"


def _in_order(matching: Matching) -> list[NodeChange]:
    """Rows in the order of the first file; an added operation follows what stands before it in the second."""
    added_after: dict[Group | None, list[Operation]] = {}
    last: Group | None = None
    for op in matching.b.operations:
        last = matching.group.get(op, last)
        if op not in matching.group:
            added_after.setdefault(last, []).append(op)
    rows = [_added(op) for op in added_after.get(None, [])]
    written: set[Group] = set()
    for op in matching.a.operations:
        group = matching.group.get(op)
        if group is None:
            rows.append(_removed(matching, op))
        elif group not in written:
            written.add(group)
            rows.append(_row(matching, group))
            rows += [_added(o) for o in added_after.get(group, [])]
    return rows


def _row(matching: Matching, group: Group) -> NodeChange:
    after = group.afters[0]
    before = next((op for op in group.befores if op.family == after.family), group.befores[0])
    changes, details = [], []
    if before.form != after.form:
        changes.append(Change.FLOAT_AGAIN if after.form == Form.FLOAT else Change.QUANTIZED)
        details.append(after.form if before.form == Form.FLOAT else f"{before.form} → {after.form}")
    if len(group.befores) > 1:
        changes.append(Change.FUSED)
        details.append("from " + " + ".join(op.op_type for op in group.befores))
    if len(group.afters) > 1:
        changes.append(Change.EXPANDED)
        details.append("into " + " + ".join(op.op_type for op in group.afters))
    if len(group.befores) == len(group.afters) == 1:
        if before.family != after.family:
            changes.append(Change.REPLACED)
            details.append(f"{before.op_type} → {after.op_type}")
        elif before.op_type == after.op_type and (retuned := _retuned(before, after)):
            changes.append(Change.RETUNED)
            details.append(retuned)
    new = _reads(matching, matching.b, group.afters) - _reads(matching, matching.a, group.befores)
    if before.scope != after.scope or new:
        changes.append(Change.MOVED)
    return NodeChange(
        before=[_ref(op) for op in group.befores],
        after=[_ref(op) for op in group.afters],
        changes=changes,
        detail="; ".join(details),
    )


def _added(op: Operation) -> NodeChange:
    of = f" for {', '.join(op.keys)}" if op.traced and op.keys else ""
    return NodeChange(
        after=[_ref(op)], changes=[Change.ADDED], detail=f"made by {op.made_by}{of}" if op.made_by else ""
    )


def _removed(matching: Matching, op: Operation) -> NodeChange:
    folded = _is_folded(matching.a, op)
    return NodeChange(before=[_ref(op)], changes=[Change.REMOVED], detail="folded into a constant" if folded else "")


def _is_folded(flat: FlatModel, op: Operation) -> bool:
    """Does it compute from constants alone?"""
    waiting, seen = [op], {op}
    while waiting:
        current = waiting.pop()
        for value in current.data:
            producer = flat.producer(value)
            if producer is None and not is_constant(value):
                return False
            if producer is not None and producer not in seen:
                seen.add(producer)
                waiting.append(producer)
    return True


def _ref(op: Operation) -> NodeRef:
    return NodeRef(name=op.name, op_type=op.op_type, form=op.form, scope=" / ".join(op.scope))


def _retuned(before: Operation, after: Operation) -> str:
    names = sorted(before.attributes.keys() | after.attributes.keys())
    changed = [n for n in names if before.attributes.get(n) != after.attributes.get(n)]
    return ", ".join(
        f"{n} {before.attributes.get(n, 'default')} → {after.attributes.get(n, 'default')}" for n in changed
    )


def _reads(matching: Matching, flat: FlatModel, members: list[Operation]) -> set[object]:
    """What `members` read from outside, as groups and places of model inputs; free operations are looked through."""
    inputs = list(flat.model.graph.inputs)
    found: set[object] = set()
    waiting = [v for op in members for v in op.data]
    seen = set(waiting)
    while waiting:
        value = waiting.pop()
        producer = flat.producer(value)
        if producer is None:
            found.add(inputs.index(value) if value in inputs else "body input")
        elif producer in matching.group:
            found.add(matching.group[producer])
        else:
            new = [v for v in producer.data if v not in seen]
            seen.update(new)
            waiting += new
    return found - {matching.group[members[0]]}
