"""Types and shapes of all values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.description import describe
from qcompile.compiler.graph import constant, graphs, is_constant, name_of, rank
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.passes.prepare.dimensions import elements

if TYPE_CHECKING:
    import onnx

_SHOWN = 5

_INVENTED = "unk__"
"""How ONNX shape inference begins the names that it makes up."""

_BROADCASTING = {"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Where", "Equal", "Less", "Greater", "And", "Or"}


class InferShapes(Pass):
    """Run ONNX shape inference, with data propagation, over the main graph and all bodies.

    Values whose shape or rank stays unknown are named in a notice: what depends on them (a cost, an
    axis) is then decided without it.
    """

    name: ClassVar[str] = "infer-shapes"
    phase: ClassVar[Phase] = Phase.PREPARE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.SHAPES})
    float_equivalent: ClassVar[bool] = True

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        modified = infer_shapes(model)
        unknown = [name_of(v) for g in graphs(model) for n in g for v in n.outputs if v.name and v.shape is None]
        if unknown:
            names = ", ".join(unknown[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
            context.notice(f"the shape of {len(unknown)} values is unknown: {names}")
        return modified


def infer_shapes(model: ir.Model) -> bool:
    """Write types and shapes that ONNX can infer into the values of `model`; True if any is new.

    Names must be unique. Where the inference fails as a whole the model keeps the shapes it has.
    """
    import onnx

    proto, _ = describe(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return False
    infos = {info.name: info.type for graph in _graph_protos(inferred.graph) for info in _infos(graph)}
    modified = False
    for graph in graphs(model):
        for node in graph:
            for value in node.outputs:
                if value.name in infos:
                    modified |= _refine(value, infos[value.name])
    return _name_dimensions(model) or modified


def _name_dimensions(model: ir.Model) -> bool:
    """Give dimensions that ONNX calls `unk__0`, `unk__1`, ... the names they have elsewhere.

    A Reshape of [N, 2, 3] to [?, 6] has [N, 6] elements: what is left when equal factors cancel. Where [N, 4]
    and [?, 4] broadcast, the result is [N, 4]: the unknown size is N or 1, else the model would not run.
    """
    modified = False
    known: dict[str, str | int] = {}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.shape is not None and any(_symbol(d) in known for d in value.shape):
                value.shape = ir.Shape([known.get(_symbol(d), d) for d in value.shape])
                modified = True
        found: dict[str, str | int] = {}
        if node.op_type == "Reshape" and node.domain == "":
            found = _asked_for(node) or dict([factor] if (factor := _remaining_factor(node)) else [])
        elif node.op_type == "Slice" and node.domain == "":
            found = _beside_the_slice(node)
        elif node.op_type in _BROADCASTING and node.domain == "":
            found = _broadcast(node)
        elif node.op_type == "MatMul" and node.domain == "":
            found = _broadcast(node, 2)
        if found:
            known |= found
            [result] = node.outputs
            assert result.shape is not None
            result.shape = ir.Shape([known.get(_symbol(d), d) for d in result.shape])
            modified = True
    return _name_summed(model) or modified


def _name_summed(model: ir.Model) -> bool:
    """Give dimensions that ONNX made up, and that a product sums over, the size that its constant matrix has."""
    known = {}
    for node in model.graph.all_nodes():
        weight = node.inputs[1] if node.op_type in ("MatMul", "Gemm") and node.domain == "" else None
        source = node.inputs[0] if weight is not None else None
        if weight is None or source is None or not is_constant(weight) or rank(weight) != 2 or not source.shape:
            continue
        name = _symbol(source.shape[0 if node.attributes.get_int("transA", 0) else -1])
        if name.startswith(_INVENTED) and weight.shape is not None:
            known[name] = weight.shape[1 if node.attributes.get_int("transB", 0) else 0]
    found = [
        v for n in model.graph.all_nodes() for v in n.outputs if v.shape and any(_symbol(d) in known for d in v.shape)
    ]
    for value in found:
        assert value.shape is not None
        value.shape = ir.Shape([known.get(_symbol(d), d) for d in value.shape])
    return bool(found)


def _beside_the_slice(node: ir.Node) -> dict[str, str | int]:
    """The invented dimensions of axes that a Slice does not cut, where ONNX knew nothing of its bounds."""
    source, result = node.inputs[0], node.outputs[0]
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    if axes is None or source is None or source.shape is None or result.shape is None:
        return {}
    cut = {int(a) % len(source.shape) for a in axes.reshape(-1)}
    sizes = [d if isinstance(d, int) else _symbol(d) for d in source.shape]
    pairs = [(_symbol(d), sizes[i]) for i, d in enumerate(result.shape) if i not in cut]
    return {name: size for name, size in pairs if name.startswith(_INVENTED) and size and name != size}


def _broadcast(node: ir.Node, behind: int = 0) -> dict[str, str | int]:
    """The invented dimensions of a broadcast that meet one named dimension; the last `behind` do not broadcast."""
    [result] = node.outputs
    shapes = [v.shape for v in node.inputs if v is not None]
    found: dict[str, str | int] = {}
    for axis in range(1 + behind, len(result.shape or ()) + 1):
        assert result.shape is not None
        name = _symbol(result.shape[-axis])
        met = {
            d if isinstance(d, int) else _symbol(d)
            for s in shapes
            if s is not None and len(s) >= axis
            for d in [s[-axis]]
        }
        named = {d for d in met if isinstance(d, str) and d and not d.startswith(_INVENTED)}
        if name.startswith(_INVENTED) and None not in shapes and len(named) == 1 and "" not in met:
            found[name] = named.pop()
    return found


def _asked_for(node: ir.Node) -> dict[str, str | int]:
    """The invented dimensions of a Reshape for which the wanted shape, put together from other shapes, has a name."""
    source, result, asked = node.inputs[0], node.outputs[0], elements(node.inputs[1])
    if asked is None or source is None or result.shape is None or len(asked) != len(result.shape):
        return {}
    pairs = [(_symbol(d), e) for d, e in zip(result.shape, asked, strict=True) if isinstance(e, str)]
    return {name: e for name, e in pairs if name.startswith(_INVENTED) and not e.startswith(_INVENTED)}


def _remaining_factor(node: ir.Node) -> tuple[str, str | int] | None:
    """The invented dimension of a Reshape's output and what it must be."""
    source, result = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or result.shape is None:
        return None
    before, after = list(source.shape), list(result.shape)
    invented = [d for d in after if _symbol(d).startswith(_INVENTED)]
    if len(invented) != 1 or any(isinstance(d, ir.SymbolicDim) and d.value is None for d in (*before, *after)):
        return None
    after.remove(invented[0])
    symbols = Counter(_symbol(d) for d in before if not isinstance(d, int))
    symbols.subtract(_symbol(d) for d in after if not isinstance(d, int))
    numerator = math.prod(d for d in before if isinstance(d, int))
    denominator = math.prod(d for d in after if isinstance(d, int))
    left = [name for name, power in symbols.items() if power]
    if not denominator or not numerator or any(power < 0 for power in symbols.values()):
        return None
    if not left and numerator % denominator == 0:
        return _symbol(invented[0]), numerator // denominator
    if numerator == denominator and len(left) == 1 and symbols[left[0]] == 1 and left[0] != _symbol(invented[0]):
        return _symbol(invented[0]), left[0]
    return None


def _symbol(size: int | ir.SymbolicDim) -> str:
    """The name of a symbolic dimension, empty for numbers and nameless ones."""
    return "" if isinstance(size, int) else size.value or ""


def _graph_protos(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _graph_protos(body)


def _infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.value_info
    yield from graph.output


def _refine(value: ir.Value, inferred: onnx.TypeProto) -> bool:
    """Take over what is inferred, dimension by dimension, without losing what was known."""
    modified = False
    known = ir.serde.deserialize_type_proto_for_type(inferred)
    if value.type is None and known is not None:
        value.type, modified = known, True
    shape = ir.serde.deserialize_type_proto_for_shape(inferred)
    if shape is None:
        return modified
    if value.shape is None:
        value.shape = shape
        return True
    if len(shape) != len(value.shape):
        return modified
    merged = ir.Shape([_better(a, b) for a, b in zip(value.shape, shape, strict=True)])
    if merged != value.shape:
        value.shape, modified = merged, True
    return modified


def _better(old: int | ir.SymbolicDim, new: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    if isinstance(old, int):
        return old
    return new if isinstance(new, int) or old.value is None else old
