"""Activation functions that an exporter wrote out become the operators they are."""

from __future__ import annotations

import math
from typing import ClassVar

import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant, graphs, is_constant, opset, rank
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.provenance import stamp
from qcompile.passes.prepare.surgery import Names, bypass, is_unread, remove_unread, sole_reader


class FuseActivations(Pass):
    """Recognize activation functions in products, whatever the order of their factors.

    1. x * clip(x + 3, 0, 6) / 6, or x * HardSigmoid(x; 1/6, 1/2): HardSwish (opset 14)
    2. clip(x + 3, 0, 6) / 6: HardSigmoid
    3. x * (1 + erf(x / sqrt 2)) / 2: Gelu (opset 20; below, the runtime fuses it itself)
    """

    name: ClassVar[str] = "fuse-activations"
    phase: ClassVar[Phase] = Phase.PREPARE
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES, Fact.SHAPES})
    float_equivalent: ClassVar[bool] = True

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        names, version = Names(model), opset(model)
        modified = False
        for graph in list(graphs(model)):
            # Backwards, so that a product is seen before the products it consists of.
            fused = [self._fuse(node, version, names) for node in reversed(list(graph)) if node.graph is graph]
            if any(fused):
                modified = True
                remove_unread(graph)
        return modified

    def _fuse(self, node: ir.Node, version: int, names: Names) -> bool:
        if node.op_type not in ("Mul", "Div") or node.domain != "" or is_unread(node):
            return False
        coefficient, factors, absorbed = _product(node)
        made = _activation(coefficient, factors, version) if factors else None
        if made is None:
            return False
        made.name = names.fresh(f"{node.name}_{made.op_type}")
        assert node.graph is not None
        node.graph.insert_before(node, made)
        stamp(made, self.name, [*absorbed, *(n for v in factors for n in _chain(v, made.inputs[0]))])
        made.outputs[0].type, made.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        return bypass(node, made.outputs[0], take_name=True)


def _product(node: ir.Node) -> tuple[float, list[ir.Value], list[ir.Node]]:
    """A tree of Mul and Div as coefficient, factors and the nodes it consists of."""
    a, b = node.inputs
    assert a is not None
    assert b is not None
    coefficient, factors, absorbed = 1.0, list[ir.Value](), [node]
    for value in (a, b):
        number = _number(value, b if value is a else a)
        producer = value.producer()
        if number is not None and (node.op_type == "Mul" or (value is b and number)):
            coefficient *= number if node.op_type == "Mul" else 1 / number
        elif (
            producer is not None
            and producer.op_type in ("Mul", "Div")
            and producer.domain == ""
            and producer.graph is node.graph
            and sole_reader(value) is node
            and (node.op_type == "Mul" or value is a)
        ):
            inner, more, nodes = _product(producer)
            coefficient, factors, absorbed = coefficient * inner, factors + more, absorbed + nodes
        elif node.op_type == "Mul" or value is a:
            factors.append(value)
        else:
            return 0.0, [], []
    return coefficient, factors, absorbed


def _activation(coefficient: float, factors: list[ir.Value], version: int) -> ir.Node | None:
    if len(factors) == 1:
        source = _shifted_relu6(factors[0])
        if source is not None and math.isclose(coefficient, 1 / 6, rel_tol=1e-6):
            return ir.node("HardSigmoid", [source], {"alpha": 1 / 6, "beta": 0.5})
        return None
    if len(factors) != 2:
        return None
    for x, gate in (factors, factors[::-1]):
        if version >= 14 and _shifted_relu6(gate) is x and math.isclose(coefficient, 1 / 6, rel_tol=1e-6):
            return ir.node("HardSwish", [x])
        if version >= 14 and _hard_sigmoid(gate) is x and math.isclose(coefficient, 1.0, rel_tol=1e-6):
            return ir.node("HardSwish", [x])
    gelu_of = _erf_gelu(coefficient, factors)
    return ir.node("Gelu", [gelu_of]) if version >= 20 and gelu_of is not None else None


def erf_gelu(node: ir.Node) -> ir.Value | None:
    """x of x * (1 + erf(x / sqrt 2)) / 2 whose last product is `node`, or None where it is something else."""
    if node.op_type not in ("Mul", "Div") or node.domain != "":
        return None
    coefficient, factors, _ = _product(node)
    return _erf_gelu(coefficient, factors)


def _erf_gelu(coefficient: float, factors: list[ir.Value]) -> ir.Value | None:
    if len(factors) != 2 or not math.isclose(coefficient, 0.5, rel_tol=1e-6):
        return None
    return next((x for x, gate in (factors, factors[::-1]) if _one_plus_erf(gate) is x), None)


def _shifted_relu6(value: ir.Value) -> ir.Value | None:
    """x of clip(x + 3, 0, 6)."""
    clip = _made_by(value, "Clip")
    if clip is None or len(clip.inputs) != 3 or clip.inputs[0] is None:
        return None
    bounds = [constant(v) for v in clip.inputs[1:]]
    if any(b is None or b.size != 1 for b in bounds) or [float(b.item()) for b in bounds if b is not None] != [0, 6]:
        return None
    return _plus(clip.inputs[0], 3.0)


def _hard_sigmoid(value: ir.Value) -> ir.Value | None:
    """x of HardSigmoid(x) = clip(x / 6 + 1/2, 0, 1)."""
    node = _made_by(value, "HardSigmoid")
    if node is None or not math.isclose(node.attributes.get_float("alpha", 0.2), 1 / 6, rel_tol=1e-6):
        return None
    return node.inputs[0] if node.attributes.get_float("beta", 0.5) == 0.5 else None


def _one_plus_erf(value: ir.Value) -> ir.Value | None:
    """x of 1 + erf(x / sqrt 2)."""
    inner = _plus(value, 1.0)
    erf = _made_by(inner, "Erf") if inner is not None else None
    producer = erf.inputs[0].producer() if erf is not None and erf.inputs[0] is not None else None
    if producer is None or producer.op_type not in ("Mul", "Div") or producer.domain != "":
        return None
    coefficient, factors, _ = _product(producer)
    return factors[0] if len(factors) == 1 and math.isclose(coefficient, math.sqrt(0.5), rel_tol=1e-6) else None


def _plus(value: ir.Value, number: float) -> ir.Value | None:
    """x of x + number."""
    node = _made_by(value, "Add")
    if node is None:
        return None
    a, b = node.inputs
    assert a is not None
    assert b is not None
    if _number(b, a) == number:
        return a
    return b if _number(a, b) == number else None


def _chain(value: ir.Value, source: ir.Value | None) -> list[ir.Node]:
    """The nodes that lead from `source` to `value`, one input each besides constants."""
    nodes: list[ir.Node] = []
    while value is not source and (node := value.producer()) is not None:
        nodes.append(node)
        value = next(v for v in node.inputs if v is not None and not is_constant(v))
    return nodes[::-1]


def _made_by(value: ir.Value, op_type: str) -> ir.Node | None:
    node = value.producer()
    return node if node is not None and node.op_type == op_type and node.domain == "" else None


def _number(value: ir.Value, beside: ir.Value) -> float | None:
    """A constant of one element that leaves the shape of `beside` as it is."""
    array = constant(value)
    if array is None or array.size != 1 or array.dtype.kind != "f":
        return None
    return float(array.item()) if array.ndim == 0 or array.ndim <= (rank(beside) or 0) else None
