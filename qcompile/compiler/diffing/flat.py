"""A model as a flat list of operations: conversions and constants are seen through.

QuantizeLinear and its kin are not operations here but a property of the edges they stand on: with
them taken away, a quantized model and its float model have the same operations to match.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import onnx_ir as ir

from qcompile.compiler.diffing.forms import form_of
from qcompile.compiler.inspection import CONVERSIONS
from qcompile.compiler.operators.calls import is_row_quantizer
from qcompile.compiler.provenance import SOURCE, sources, stamp_originals
from qcompile.compiler.stored_weights import restores, stored_behind

_INTEGER_NAMES = re.compile(
    r"^(QLinear|DynamicQuantize|Quantized?|Q(?=Gemm$)|Fused)"
    r"|(Integer(ToFloat)?|NBits|Bnb4|BlockQuantized(Fp\dWeight)?)$"
)


@dataclass(eq=False)
class Operation:
    """One node that computes.

    Attributes:
        index: its place among the operations of the model, bodies of control flow included.
        op_type: with its domain when that is not the default one ('com.microsoft::Gelu').
        family: the float operator that it computes ('MatMul' for MatMulIntegerToFloat).
        scope: names of the control-flow nodes it lies in, outermost first.
        keys: names of the source nodes it stands for.
        traced: the keys come from provenance, not from its own name.
        data: what it reads apart from constants, conversions seen through.
        constants: initializers it reads, conversions seen through.
        form: how it computes, in the words of plan.Form, or for example 'int4 weights'.
    """

    index: int
    node: ir.Node
    name: str
    op_type: str
    family: str
    scope: tuple[str, ...]
    keys: tuple[str, ...]
    traced: bool
    data: tuple[ir.Value, ...]
    constants: tuple[ir.Value, ...]
    form: str
    attributes: dict[str, str] = field(default_factory=dict)

    @property
    def made_by(self) -> str:
        """The pass that made or last rewrote it, empty when unknown."""
        return self.node.metadata_props.get("qcompile.pass", "")


@dataclass(eq=False)
class FlatModel:
    """All operations of a model, and its conversions by operator type."""

    model: ir.Model
    operations: list[Operation]
    conversions: dict[str, int]
    by_output: dict[ir.Value, Operation]

    def producer(self, value: ir.Value) -> Operation | None:
        return self.by_output.get(value)


def flatten(model: ir.Model) -> FlatModel:
    """List the operations of `model` (nodes without a name get one, as the pipeline gives it)."""
    traced = {node for node in model.graph.all_nodes() if SOURCE in node.metadata_props}
    stamp_originals(model)
    operations: list[Operation] = []
    conversions: dict[str, int] = {}
    for scope, node in _walk(model.graph, ()):
        if restores(node):
            continue
        if _is_conversion(node):
            conversions[node.op_type] = conversions.get(node.op_type, 0) + 1
        elif node.op_type != "Constant":
            operations.append(_operation(len(operations), node, scope, node in traced))
    by_output = {value: op for op in operations for value in op.node.outputs}
    return FlatModel(model, operations, conversions, by_output)


def seen_through(value: ir.Value) -> ir.Value | None:
    """The value before all conversions that lead to `value`; None for a scale that one of them computes."""
    while (node := value.producer()) is not None and _is_conversion(node) and node.inputs[0] is not None:
        if value.index():
            return None
        value = stored_behind(value)[0] if restores(node) else node.inputs[0]
    return value


def _is_conversion(node: ir.Node) -> bool:
    return node.op_type in CONVERSIONS or is_row_quantizer(node) or restores(node)


def is_constant(value: ir.Value) -> bool:
    """An initializer (of whatever size, read or not) or the output of a Constant node."""
    node = value.producer()
    return value.is_initializer() or value.const_value is not None or (node is not None and node.op_type == "Constant")


def _walk(graph: ir.Graph, scope: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], ir.Node]]:
    for node in graph:
        yield scope, node
        for attribute in node.attributes.values():
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _walk(attribute.as_graph(), (*scope, f"{node.name}.{attribute.name}"))
            elif attribute.type == ir.AttributeType.GRAPHS:
                for i, body in enumerate(attribute.as_graphs()):
                    yield from _walk(body, (*scope, f"{node.name}.{attribute.name}[{i}]"))


def _operation(index: int, node: ir.Node, scope: tuple[str, ...], traced: bool) -> Operation:
    read = [s for v in node.inputs if v is not None and (s := seen_through(v)) is not None]
    domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}::"
    return Operation(
        index=index,
        node=node,
        name=node.name or "",
        op_type=domain + node.op_type,
        family=_INTEGER_NAMES.sub("", node.op_type) or node.op_type,
        scope=scope,
        keys=tuple(sources(node)),
        traced=traced,
        data=tuple(v for v in read if not is_constant(v)),
        constants=tuple(dict.fromkeys(v for v in read if is_constant(v))),
        form=str(form_of(node)),
        attributes={name: _text(a) for name, a in sorted(node.attributes.items()) if not _is_default(node, name, a)},
    )


def _is_default(node: ir.Node, name: str, attribute: ir.Attr) -> bool:
    """Does leaving the attribute out say the same? (No padding and steps of one have no default in the schema.)"""
    if attribute.is_ref():
        return False
    if attribute.type == ir.AttributeType.INTS:
        unit = {"pads": 0, "strides": 1, "dilations": 1}.get(name)
        return unit is not None and all(v == unit for v in attribute.as_ints())
    return attribute.value is not None and _text(attribute) == _defaults(node.op_type, node.domain).get(name)


@cache
def _defaults(op_type: str, domain: str) -> dict[str, str]:
    import onnx

    if not onnx.defs.has(op_type, domain):
        return {}
    schema = onnx.defs.get_schema(op_type, domain)
    found = ((n, a.default_value) for n, a in schema.attributes.items())
    return {n: _text(ir.serde.deserialize_attribute(v)) for n, v in found if v.name}


def _text(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "a graph"
    if attribute.type in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
        return "a tensor"
    return str(list(attribute.value) if isinstance(attribute.value, tuple) else attribute.value)
