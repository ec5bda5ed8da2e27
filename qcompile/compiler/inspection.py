"""What is in a model file: the facts to look at before compiling it, and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from pydantic import BaseModel

from qcompile.compiler.graph import graphs
from qcompile.compiler.reading import read_structure, stays_in_folder
from qcompile.compiler.report import CodedWeights
from qcompile.compiler.stored_weights import coded_weights

if TYPE_CHECKING:
    from qcompile.compiler.units import Candidate

CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


class ValueInfo(BaseModel):
    """An input or output: dims are numbers, names of dynamic dimensions, or '?'; None when the rank is unknown."""

    name: str
    dtype: str
    dims: list[str] | None

    @property
    def dynamic(self) -> list[str]:
        """Dimensions that are not numbers."""
        return [d for d in self.dims or [] if not d.isdigit()]


class OperatorCount(BaseModel):
    """Nodes of one operator; `in_bodies` of them lie in bodies of If, Loop or Scan."""

    op_type: str
    nodes: int
    in_bodies: int


class TypeBytes(BaseModel):
    """Stored tensors of one element type."""

    dtype: str
    tensors: int
    elements: int
    bytes: int


class ExternalFile(BaseModel):
    """A file that holds tensors of the model; `present` is False when it is missing or leaves the model's folder."""

    location: str
    tensors: int
    bytes: int
    present: bool


class Coverage(BaseModel):
    """What one target's table could run in low precision, as far as the graph alone tells.

    Calibration decides the rest: ranges that an 8-bit grid does not resolve, conversions that cost
    more than they save.

    Attributes:
        nodes: operations of the model, constants left out.
        quantizable: those that the table has a low-precision form for and nothing speaks against.
        obstacles: why others with a form must stay float, with counts.
    """

    target: str
    nodes: int
    quantizable: int
    obstacles: dict[str, int]


class Inspection(BaseModel):
    """Everything `inspect` found. `manifest` is None for a model that qcompile did not make."""

    path: str
    file_bytes: int
    ir_version: int
    opsets: dict[str, int]
    producer: str
    inputs: list[ValueInfo]
    outputs: list[ValueInfo]
    nodes: int
    bodies: int
    functions: list[str]
    operators: list[OperatorCount]
    stored: list[TypeBytes]
    coded: list[CodedWeights]
    external: list[ExternalFile]
    unknown_shapes: list[str]
    coverage: list[Coverage]
    manifest: dict[str, Any] | None = None

    @property
    def conversions(self) -> int:
        """Nodes that convert to or from codes; above zero the model is quantized already."""
        return sum(o.nodes for o in self.operators if o.op_type in CONVERSIONS)

    @property
    def parameters(self) -> int:
        """Elements of all stored tensors."""
        return sum(t.elements for t in self.stored)


def inspect(path: Path) -> Inspection:
    """Look at the model at `path`; external data is not read.

    Raises:
        ModelError: it is not an ONNX model, or a damaged one.
    """
    from qcompile.runtime.model_header import manifest

    model = read_structure(path)
    functions = sorted(f"{f.domain}::{f.name}" for f in model.functions.values())
    _infer_shapes(model)
    tensors = list(_tensors(model))
    external = _external(tensors)
    return Inspection(
        path=str(path),
        file_bytes=file_bytes(path, model),
        ir_version=model.ir_version or 0,
        opsets={domain or "ai.onnx": version for domain, version in model.graph.opset_imports.items()},
        producer=f"{model.producer_name or ''} {model.producer_version or ''}".strip(),
        inputs=[describe_value(v) for v in model.graph.inputs if not v.is_initializer()],
        outputs=[describe_value(v) for v in model.graph.outputs],
        nodes=sum(1 for _ in model.graph.all_nodes()),
        bodies=sum(1 for _ in model.graph.subgraphs()),
        functions=functions,
        operators=_operators(model),
        stored=_stored(tensors),
        coded=coded_weights(model),
        external=external,
        unknown_shapes=[
            v.name or "" for g in graphs(model) for n in g for v in n.outputs if v.name and v.shape is None
        ],
        coverage=_coverage(model),
        manifest=manifest(path),
    )


def file_bytes(path: Path, model: ir.Model) -> int:
    """Size of the file of `model` and of the external files in its folder that are there."""
    files = {path, *(Path(t.path) for t in _tensors(model) if isinstance(t, ir.ExternalTensor) and stays_in_folder(t))}
    return sum(file.stat().st_size for file in files)


def _infer_shapes(model: ir.Model) -> None:
    """Add what ONNX can infer; where it cannot, the shapes in the file are all there is."""
    import onnx

    from qcompile.compiler.description import describe

    proto, _ = describe(model)
    try:
        inferred = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    except Exception:  # broken or unknown operators must not hide the rest of the model
        return
    for known, found in zip(graphs(model), graphs(inferred), strict=True):
        for node, same in zip(known, found, strict=True):
            for value, described in zip(node.outputs, same.outputs, strict=True):
                value.shape = value.shape or described.shape
                value.type = value.type or described.type


def describe_value(value: ir.Value) -> ValueInfo:
    """Name, type and dimensions of `value`."""
    dims = None if value.shape is None else [str(_dim(d)) for d in value.shape]
    return ValueInfo(name=value.name or "", dtype=type_text(value.type), dims=dims)


def _dim(dim: int | ir.SymbolicDim) -> int | str:
    return dim if isinstance(dim, int) else dim.value or "?"


def type_text(kind: ir.TypeProtocol | None) -> str:
    """'float32', 'sequence of int64', or '?'."""
    if kind is None:
        return "?"
    if isinstance(kind, ir.TensorType):
        return type_name(kind.dtype)
    return f"{type(kind).__name__.removesuffix('Type').lower()} of {type_name(kind.dtype)}"


def type_name(dtype: ir.DataType) -> str:
    """'float32', 'int8': as numpy calls it."""
    return {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}.get(dtype, dtype.name.lower())


def _operators(model: ir.Model) -> list[OperatorCount]:
    total: Counter[str] = Counter()
    bodies: Counter[str] = Counter()
    for graph in graphs(model):
        for node in graph:
            name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
            total[name] += 1
            bodies[name] += graph is not model.graph
    return [OperatorCount(op_type=n, nodes=c, in_bodies=bodies[n]) for n, c in total.most_common()]


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Initializers and the tensors of Constant nodes, bodies included."""
    for graph in graphs(model):
        yield from (v.const_value for v in graph.initializers.values() if v.const_value is not None)
        for node in graph:
            attribute = node.attributes.get("value") if node.op_type == "Constant" else None
            if attribute is not None and not attribute.is_ref():
                yield attribute.as_tensor()


def _stored(tensors: list[ir.TensorProtocol]) -> list[TypeBytes]:
    found: dict[str, list[ir.TensorProtocol]] = {}
    for tensor in tensors:
        found.setdefault(type_name(tensor.dtype), []).append(tensor)
    rows = [
        TypeBytes(dtype=name, tensors=len(ts), elements=sum(t.size for t in ts), bytes=sum(_nbytes(t) for t in ts))
        for name, ts in found.items()
    ]
    return sorted(rows, key=lambda r: -r.bytes)


def _nbytes(tensor: ir.TensorProtocol) -> int:
    return 0 if tensor.dtype == ir.DataType.STRING else tensor.nbytes


def _external(tensors: list[ir.TensorProtocol]) -> list[ExternalFile]:
    found: dict[str, list[ir.ExternalTensor]] = {}
    for tensor in tensors:
        if isinstance(tensor, ir.ExternalTensor):
            found.setdefault(str(tensor.location), []).append(tensor)
    return [
        ExternalFile(
            location=location,
            tensors=len(ts),
            bytes=sum(_nbytes(t) for t in ts),
            present=all(stays_in_folder(t) for t in ts),
        )
        for location, ts in sorted(found.items())
    ]


def _obstacle(candidate: Candidate) -> str:
    """Why an operator that the target knows of stays float, empty when it need not."""
    refused = "" if candidate.row.forms else next(iter((candidate.row.refused or {}).values()), "")
    return candidate.obstacle or refused


def _coverage(model: ir.Model) -> list[Coverage]:
    from qcompile.compiler.targets import TARGETS
    from qcompile.compiler.units import candidates

    nodes = sum(node.op_type != "Constant" for node in model.graph.all_nodes())
    rows = []
    for target in TARGETS.values():
        found = [c for graph in graphs(model) for c in candidates(graph, target)]
        rows.append(
            Coverage(
                target=target.name,
                nodes=nodes,
                quantizable=sum(bool(c.row.forms) and not c.obstacle for c in found),
                obstacles=dict(Counter(why for c in found if (why := _obstacle(c))).most_common()),
            )
        )
    return rows
