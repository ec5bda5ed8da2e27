"""Units: an operator together with the bias Add and the Relu or Clip that its quantized form swallows.

MatMul -> Add(constant)              one product with a bias
Conv/Gemm/Add -> Relu | Clip(lo<=0)  the output's range [0, max] or [lo, hi] already clips
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant, is_constant, is_float32, name_of, nodes
from qcompile.compiler.plan import Form, Unit
from qcompile.compiler.specs import PerBlock, PerChannel, PerTensor, QuantSpec
from qcompile.compiler.targets.table import Lowering, Row, Target, Work

_ABSORBING = {"Conv", "Gemm", "Add"}


@dataclass(frozen=True, eq=False)
class Candidate:
    """A node that the target has a row for, with the nodes that belong to it.

    Attributes:
        obstacle: why it must stay float, empty when nothing speaks against it.
        activations: positions of the inputs that become codes.
    """

    node: ir.Node
    row: Row
    activations: tuple[int, ...]
    bias: ir.Node | None
    activation: ir.Node | None
    obstacle: str

    @property
    def output(self) -> ir.Value:
        return result(self.activation or self.bias or self.node)

    @property
    def nodes(self) -> list[ir.Node]:
        return [n for n in (self.node, self.bias, self.activation) if n is not None]

    def reads(self) -> list[ir.Value]:
        """Activations that become codes, constants left out, each once."""
        values = [self.node.inputs[i] for i in self.activations]
        return list(dict.fromkeys(v for v in values if v is not None and not is_constant(v)))


def result(node: ir.Node) -> ir.Value:
    """The first output that `node` really has; a recurrent operator may leave out its sequence."""
    return next((v for v in node.outputs if v.name), node.outputs[0])


def weight_spec(node: ir.Node, row: Row, form: Form, base: QuantSpec, block: int) -> QuantSpec | None:
    """What the codes of a node's weight shall be in `form`: blocks along what is summed over, one scale for each
    row of a recurrent operator, or one for each output channel. None without a weight.

    Args:
        base: the format; a granularity per tensor is kept.
        block: weights that share a scale in a lowering by blocks.
    """
    if row.state_weight is not None:
        return recurrent_spec(node, row.weight, base)
    if row.weight is None or row.weight_axis is None:
        return None
    axis = row.weight_axis(node)
    if row.how(form) is Lowering.BLOCKS:
        return replace(base, granularity=PerBlock(1 - axis, block))
    return base if base.granularity == PerTensor() else replace(base, granularity=PerChannel(axis))


def recurrent_spec(node: ir.Node, position: int | None, base: QuantSpec) -> QuantSpec | None:
    """One scale for each direction and row of a recurrent weight [directions, rows, columns]."""
    weight = node.inputs[position] if position is not None else None
    columns = weight.shape[2] if weight is not None and weight.shape is not None else None
    return replace(base, granularity=PerBlock(2, columns)) if isinstance(columns, int) else None


def unit_reading_float(
    candidate: Candidate, form: Form, target: Target, block: int | None = None, weights: QuantSpec | None = None
) -> Unit:
    """The unit of a candidate in a form that reads and writes float: DYNAMIC, BLOCKS, ROWS or WEIGHTS.

    Args:
        block: weights that share a scale in the form BLOCKS; left out, the target's.
        weights: what weights become; left out, the target's.
    """
    node, row, base = candidate.node, candidate.row, weights or target.weight
    weight, state = (node.inputs[p] if p is not None else None for p in (row.weight, row.state_weight))
    return Unit(
        node=str(node.name),
        op_type=node.op_type,
        form=form,
        inputs=tuple(None for _ in node.inputs),
        output=name_of(result(candidate.bias or node)),
        weight=name_of(weight) if weight is not None else None,
        bias=str(candidate.bias.name) if candidate.bias else None,
        weight_spec=weight_spec(node, row, form, base, block or target.block),
        state_weight=name_of(state) if state is not None else None,
        state_spec=recurrent_spec(node, row.state_weight, base),
    )


def unit_on_codes(candidate: Candidate, form: Form, weights: QuantSpec, block: int) -> Unit:
    """The unit of a candidate in a form that reads codes: INPUTS, FULL or PASS, or ROWS and ROUNDED.

    Args:
        weights: what weights become.
        block: weights that share a scale in a lowering by blocks.
    """
    node, row, whole = candidate.node, candidate.row, form in (Form.FULL, Form.PASS)
    weight = node.inputs[row.weight] if row.weight is not None else None
    return Unit(
        node=str(node.name),
        op_type=node.op_type,
        form=form,
        inputs=tuple(
            name_of(v) if i in candidate.activations and v is not None else None for i, v in enumerate(node.inputs)
        ),
        output=name_of(candidate.output if whole else (candidate.bias or node).outputs[0]),
        weight=name_of(weight) if weight is not None else None,
        bias=str(candidate.bias.name) if candidate.bias else None,
        activation=str(candidate.activation.name) if candidate.activation and whole else None,
        weight_spec=weight_spec(node, row, form, weights, block),
    )


def work(candidate: Candidate, inputs: float, outputs: float) -> Work:
    """The work of one execution, from the elements that it reads and writes."""
    row, node = candidate.row, candidate.node
    if row.weight is not None and row.state_weight is not None:
        weights = [node.inputs[p] for p in (row.weight, row.state_weight)]
        size, steps = sum(map(elements, weights)), inputs / _columns(weights[0])
        return Work(steps * size, steps * size / sum(map(_columns, weights)), inputs, size)
    if row.weight is not None and node.op_type in ("Conv", "MatMul", "Gemm") and row.weight_axis is not None:
        weight = node.inputs[row.weight]
        assert weight is not None
        assert weight.shape is not None
        shape = weight.shape.numpy()
        size = float(np.prod(shape))
        return Work(outputs * size / max(shape[row.weight_axis(node)], 1), outputs, inputs, size)
    if node.op_type == "MatMul" and outputs:
        left = node.inputs[0]
        inner = left.shape[-1] if left is not None and left.shape is not None else None
        products = float(inner) if isinstance(inner, int) else inputs / outputs**0.5
        return Work(outputs * products, outputs, inputs)
    return Work(0.0, outputs, inputs)


def _columns(weight: ir.Value | None) -> float:
    last = weight.shape[-1] if weight is not None and weight.shape is not None else 1
    return float(last) if isinstance(last, int) else 1.0


def elements(value: ir.Value | None) -> float:
    """Elements of `value` by its shape, an unknown dimension counted as 1."""
    shape = value.shape if value is not None else None
    return float(np.prod([d if isinstance(d, int) else 1 for d in shape or ()]))


def planned(model: ir.Model, context: CompileContext) -> list[tuple[ir.Node, Unit, Row]]:
    """The nodes of `model` that the plan has a unit for, with the unit and the target's row."""
    units, found = context.plan.units, []
    for node in nodes(model):
        unit, row = units.get(str(node.name)), context.target.row(node)
        if unit is not None and row is not None:
            found.append((node, unit, row))
    return found


def planned_as(lowering: Lowering, model: ir.Model, context: CompileContext) -> list[tuple[ir.Node, Unit, Row]]:
    """The planned nodes that are to be written in one pattern."""
    return [found for found in planned(model, context) if lowering_of(found[1], found[2]) is lowering]


def lowering_of(unit: Unit, row: Row) -> Lowering:
    """The pattern a unit is written in: its own, or else that of its form in the target's row."""
    return unit.lowering or row.how(unit.form)


def bias_add(product: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """The Add that alone reads `product`, and what it adds."""
    add = next(iter(product.outputs[0].uses())).node
    return add, add.inputs[1] if add.inputs[0] is product.outputs[0] else add.inputs[0]


def candidates(graph: ir.Graph, target: Target) -> list[Candidate]:
    """The candidates of one graph (bodies of control flow are graphs of their own), in order."""
    found: list[Candidate] = []
    taken: set[ir.Node] = set()
    for node in graph:
        row = target.row(node)
        if row is None or node in taken or _computes_integers(node):
            continue
        bias = _bias_add(node, row)
        activation = _absorbed(bias or node) if Form.FULL in row.forms and node.op_type in _ABSORBING else None
        positions = row.activations if row.weight is not None else row.activations or tuple(range(len(node.inputs)))
        found.append(Candidate(node, row, positions, bias, activation, _obstacle(node, row, positions)))
        taken.update(found[-1].nodes)
    return found


def _computes_integers(node: ir.Node) -> bool:
    """Whether it handles shapes, indices or flags, which are none of quantization's business."""
    dtype = result(node).dtype
    return dtype is not None and not dtype.is_floating_point()


def within_reach(open_to_choice: list[Candidate]) -> list[Candidate]:
    """The candidates for which codes can pay at all; the others need not be observed.

    Those are the operators with a weight and other products, whatever follows one that writes codes, and,
    before one that reads codes, operators that move values without computing.
    """
    reached = {c for c in open_to_choice if c.row.weight is not None or Form.INPUTS in c.row.forms}
    writes_codes = {c.output for c in reached if Form.FULL in c.row.forms}
    for candidate in open_to_choice:
        if writes_codes.intersection(candidate.reads()):
            reached.add(candidate)
            if candidate.row.weight is None:
                writes_codes.add(candidate.output)
    read = {v for c in reached for v in c.reads()}
    for candidate in reversed(open_to_choice):
        if candidate not in reached and candidate.output in read and _moves_up(candidate):
            reached.add(candidate)
            read.update(candidate.reads())
    return [c for c in open_to_choice if c in reached]


def _moves_up(candidate: Candidate) -> bool:
    """Whether a conversion may stand before the operator instead of behind it: where that adds no rounding."""
    return candidate.row.same_params or candidate.node.op_type == "Concat"


def _obstacle(node: ir.Node, row: Row, positions: tuple[int, ...]) -> str:
    if any(p >= len(node.inputs) or node.inputs[p] is None for p in positions):
        return "an input is missing"
    failed = next((c.reason for c in row.conditions if not c.holds(node)), "")
    if failed:
        return failed
    involved = [result(node), *(node.inputs[p] for p in positions)]
    if row.weight is not None:
        involved += [node.inputs[p] for p in (row.weight, row.state_weight) if p is not None]
    if not all(is_float32(v) for v in involved):
        return "it does not compute in float32"
    if row.weight is None and all(is_constant(node.inputs[p]) for p in positions):
        return "its inputs are constants"
    return ""


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The single node that reads `value` in its own graph, or None."""
    uses = list(value.uses())
    if value.is_graph_output() or len(uses) != 1:
        return None
    reader = uses[0].node
    return reader if reader.graph is value.graph else None


def _bias_add(node: ir.Node, row: Row) -> ir.Node | None:
    if node.op_type != "MatMul" or row.weight is None:
        return None
    add = _only_reader(node.outputs[0])
    if add is None or add.op_type != "Add":
        return None
    _, other = bias_add(node)
    weight = node.inputs[row.weight]
    if other is None or weight is None or weight.shape is None or not is_constant(other):
        return None
    shape = other.shape.numpy() if other.shape is not None else None
    columns = weight.shape[-1]
    fits = shape is not None and len(shape) >= 1 and shape[-1] == columns and int(np.prod(shape)) == columns
    return add if fits and len(shape or ()) == 1 else None


def _absorbed(node: ir.Node) -> ir.Node | None:
    reader = _only_reader(node.outputs[0])
    if reader is None or reader.domain not in ("", "ai.onnx"):
        return None
    if reader.op_type == "Relu":
        return reader
    if reader.op_type == "Clip" and len(reader.inputs) > 1:
        bounds = [constant(v) if v is not None else None for v in (*reader.inputs[1:], None)[:2]]
        given = [v is not None for v in (*reader.inputs[1:], None)[:2]]
        if any(g and b is None for g, b in zip(given, bounds, strict=True)):
            return None
        low, high = bounds
        if (low is None or float(low) <= 0) and (high is None or float(high) >= 0):
            return reader
    return None
