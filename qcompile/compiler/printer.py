"""A model as text: deterministic, complete where tests look, short where weights are.

    model ir 8, opset 17
    graph main (x: f32[N,3,8,8]) -> (y: f32[N,4,8,8])
      w: f32[4,3,3,3] #5d41402a
      conv: Conv(x, w) {pads=[1, 1, 1, 1]} -> y: f32[N,4,8,8]

Golden tests compare this text and `qcompile diff` may show it. ONNX's own text form is not used: it
has no sub-byte values, prints weights in full, and depends on map order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from qcompile.compiler.provenance import PASS, sources

_VALUES_SHOWN = 8
_INDENT = "  "


def print_model(model: ir.Model, provenance: bool = False) -> str:
    """The text of `model`; with `provenance` each node also says which pass made it from which nodes."""
    opsets = ", ".join(
        f"{domain or 'opset'} {version}" for domain, version in sorted(model.graph.opset_imports.items())
    )
    lines = [f"model ir {model.ir_version}, {opsets}", *_graph("main", model.graph, provenance)]
    for function in sorted(model.functions.values(), key=lambda f: f.identifier()):
        lines += _graph(f"{function.domain}::{function.name}", function.graph, provenance)
    return "\n".join(lines) + "\n"


def print_tensor(tensor: ir.TensorProtocol) -> str:
    """Type, shape, and the values of a small tensor or a digest of a large one."""
    head = f"{tensor.dtype.short_name()}[{','.join(str(d) for d in tensor.shape)}]"
    if tensor.size > _VALUES_SHOWN:
        data = repr(tensor.numpy().tolist()).encode() if tensor.dtype == ir.DataType.STRING else tensor.tobytes()
        return f"{head} #{hashlib.blake2b(data, digest_size=4).hexdigest()}"
    flat = np.asarray(tensor.numpy()).reshape(-1)
    return f"{head} [{', '.join(_scalar(x) for x in flat.tolist())}]"


def _graph(title: str, graph: ir.Graph, provenance: bool) -> list[str]:
    inputs, outputs = (", ".join(_typed(v) for v in values) for values in (graph.inputs, graph.outputs))
    lines = [f"graph {title} ({inputs}) -> ({outputs})"]
    for name, value in sorted(graph.initializers.items()):
        text = print_tensor(value.const_value) if value.const_value is not None else f"{_type(value)} (no data)"
        lines.append(f"{_INDENT}{name}: {text}")
    for node in graph:
        lines += [_INDENT + line for line in _node(node, provenance)]
    return lines


def _node(node: ir.Node, provenance: bool) -> Iterator[str]:
    kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    inputs = ", ".join("" if v is None else str(v.name) for v in node.inputs)
    plain = {n: a for n, a in sorted(node.attributes.items()) if not _bodies(a)}
    attributes = ", ".join(f"{n}={_attribute(a)}" for n, a in plain.items())
    outputs = ", ".join(_typed(v) for v in node.outputs)
    line = f"{node.name}: {kind}({inputs}){f' {{{attributes}}}' if attributes else ''} -> {outputs}"
    if provenance:
        made_by = node.metadata_props.get(PASS)
        line += f"  # from {', '.join(sources(node)) or 'nothing'}{f' by {made_by}' if made_by else ''}"
    yield line
    for name, attribute in sorted(node.attributes.items()):
        for body in _bodies(attribute):
            yield from (_INDENT + text for text in _graph(name, body, provenance))


def _typed(value: ir.Value) -> str:
    return f"{value.name}: {_type(value)}"


def _type(value: ir.Value) -> str:
    dtype = value.dtype.short_name() if value.dtype is not None else "?"
    if value.shape is None:
        return dtype
    return f"{dtype}[{','.join('?' if (n := _dimension(d)) is None else str(n) for d in value.shape)}]"


def _dimension(size: int | ir.SymbolicDim) -> int | str | None:
    return size if isinstance(size, int) else size.value


def _attribute(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    value = attribute.value
    if isinstance(value, ir.TensorProtocol):
        return print_tensor(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_scalar(x) for x in value)}]"
    return _scalar(value)


def _scalar(value: object) -> str:
    match value:
        case bool() | int():
            return str(value)
        case float():
            return f"{value:.7g}"
        case bytes():
            return repr(value.decode(errors="replace"))
        case str():
            return repr(value)
    return f"{float(value):.7g}" if isinstance(value, np.generic) else str(value)


def _bodies(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.is_ref():
        return []
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []
