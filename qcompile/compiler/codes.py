"""Make codes and read them: the nodes that the lower phase puts around a unit.

For a value V: V_quantized = QuantizeLinear(V, V_scale, V_zero_point), V_dequantized = DequantizeLinear(...).
Within one graph each exists once, whoever asks; a graph that reads V from outside makes its own, because
the runtime fuses Q/DQ only with operators of the same graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import add_initializer, constant, graphs, name_of, nodes
from qcompile.compiler.params import QuantParams, bias_params, quantize
from qcompile.compiler.plan import QuantizedWeight, Unit
from qcompile.compiler.provenance import stamp
from qcompile.compiler.scratch import on_disk
from qcompile.compiler.specs import PerBlock, PerChannel


class Codes:
    """Creates the codes of one model for one lowering pass."""

    def __init__(self, model: ir.Model, context: CompileContext, made_by: str) -> None:
        self.context, self.made_by = context, made_by
        self.names = {name for n in nodes(model) for name in (n.name, *(v.name for v in n.outputs))} | {
            name for g in graphs(model) for name in (*g.initializers, *(v.name for v in g.inputs))
        }
        self.values: dict[tuple[int, str, str], ir.Value] = {}
        self.constants: dict[tuple[int, str], list[ir.Value]] = {}

    @classmethod
    def of(cls, model: ir.Model, context: CompileContext, made_by: str) -> Codes:
        """The codes of this compilation, continued from the lowering passes before `made_by`."""
        made = context.codes
        if made is None:
            made = context.codes = cls(model, context, made_by)
        made.made_by = made_by
        return made

    def unique(self, name: str) -> str:
        """`name`, or `name_2`, `name_3`, ... when it is taken."""
        candidate, n = name, 1
        while candidate in self.names:
            n += 1
            candidate = f"{name}_{n}"
        self.names.add(candidate)
        return candidate

    def constant(self, graph: ir.Graph, name: str, array: object, dtype: ir.DataType | None = None) -> ir.Value:
        """An initializer of `graph`, made once for each name asked for and each content: a constant can be
        the weight of one unit and the operand of another."""
        wanted = np.asarray(array)
        made = self.constants.setdefault((id(graph), name), [])
        for value in made:
            known = constant(value)
            if known is not None and known.dtype == wanted.dtype and np.array_equal(known, wanted):
                return value
        made.append(add_initializer(graph, self.unique(name), on_disk(wanted), dtype))
        return made[-1]

    def scale_and_zero(self, graph: ir.Graph, name: str, params: QuantParams) -> tuple[ir.Value, ir.Value]:
        dtype = params.spec.format.dtype
        codes = params.zero_point.astype(dtype.numpy())
        return (
            self.constant(graph, f"{name}_scale", params.scale),
            self.constant(graph, f"{name}_zero_point", codes, dtype),
        )

    def quantized(self, graph: ir.Graph, value: ir.Value, name: str | None = None) -> ir.Value:
        """The codes of an activation in `graph`: from its QuantizeLinear, or an initializer for a constant.

        `name`: the activation's name in the plan, when `value` may already be its DequantizeLinear.
        """
        name = name or name_of(value)
        key = (id(graph), "quantized", name)
        if key in self.values:
            return self.values[key]
        params = self.context.plan.tensors[name]
        array = constant(value)
        if array is not None:
            codes = quantize(array, params).astype(params.spec.format.dtype.numpy())
            made = self.constant(graph, f"{name}_quantized", codes, params.spec.format.dtype)
        else:
            made = self.quantize(graph, value, value, name)
        self.values[key] = made
        return made

    def quantize(self, graph: ir.Graph, value: ir.Value, source: ir.Value, name: str) -> ir.Value:
        """A new QuantizeLinear of `source` that makes the codes of `value`, right behind its producer."""
        params = self.context.plan.tensors[name]
        scale, zero = self.scale_and_zero(graph, name, params)
        producer = source.producer()
        node = self.node("QuantizeLinear", [source, scale, zero], f"{name}_quantized", params.spec.format.dtype, value)
        insert_behind(graph, source, node)
        stamp(node, self.made_by, [producer] if producer else [])
        self.values[id(graph), "quantized", name] = node.outputs[0]
        return node.outputs[0]

    def rows(self, graph: ir.Graph, value: ir.Value, make: Callable[[ir.Value], ir.Node]) -> tuple[ir.Value, ir.Value]:
        """Codes of an activation with a scale for each row, and these scales, from the node that `make` makes of it."""
        name = name_of(value)
        keys = [(id(graph), part, name) for part in ("rows", "row scales")]
        if keys[0] not in self.values:
            node = make(value)
            insert_behind(graph, value, node)
            self.values |= zip(keys, node.outputs, strict=True)
        return self.values[keys[0]], self.values[keys[1]]

    def dequantized(self, graph: ir.Graph, value: ir.Value, name: str | None = None) -> ir.Value:
        """The values that the codes of an activation stand for, behind one DequantizeLinear; `name` as above."""
        name = name or name_of(value)
        key = (id(graph), "dequantized", name)
        if key in self.values:
            return self.values[key]
        codes = self.quantized(graph, value, name)
        scale, zero = self.scale_and_zero(graph, name, self.context.plan.tensors[name])
        node = self.node("DequantizeLinear", [codes, scale, zero], f"{name}_dequantized", ir.DataType.FLOAT, value)
        producer = codes.producer()
        if producer is not None:
            graph.insert_after(producer, node)
        else:
            graph.insert_before(next(iter(graph)), node)
        stamp(node, self.made_by, [producer] if producer else [])
        self.values[key] = node.outputs[0]
        return node.outputs[0]

    def weight(self, graph: ir.Graph, unit: Unit) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Codes, scale and zero point of a unit's weight, as initializers of `graph`.

        Two units with the same weight and the same parameters share them.
        """
        assert unit.weight is not None
        quantized, name = self.context.plan.weights[unit.weight, unit.node], self.weight_name(unit)
        dtype = quantized.params.spec.format.dtype
        codes = self.constant(graph, f"{name}_quantized", quantized.codes.astype(dtype.numpy()), dtype)
        scale, zero = self.scale_and_zero(graph, name, quantized.params)
        return codes, scale, zero

    def bias(self, graph: ir.Graph, bias: ir.Value, unit: Unit) -> tuple[ir.Value, ir.Value, ir.Value]:
        """int32 codes, scale s_x * s_w and zero point 0 of a unit's constant bias, as initializers of `graph`."""
        array, plan, name = constant(bias), self.context.plan, f"{bias.name}_{unit.node}"
        assert array is not None
        activation = next(n for n in unit.inputs if n is not None)
        params = bias_params(plan.tensors[activation], plan.weights[str(unit.weight), unit.node].params)
        flat = array.reshape(-1).astype(np.float64)
        if params.scale.ndim:
            flat = np.broadcast_to(flat, params.scale.shape)
        codes = self.constant(graph, f"{name}_quantized", quantize(flat, params).astype(np.int32))
        scale, zero = self.scale_and_zero(graph, name, params)
        return codes, scale, zero

    def row(self, graph: ir.Graph, bias: ir.Value | None, length: int) -> ir.Value | None:
        """A constant bias in any shape that Gemm takes, as a vector of `length`, for operators that take no other."""
        array = constant(bias)
        if bias is None or array is None or array.shape == (length,):
            return bias
        return self.constant(graph, f"{bias.name}_row", np.broadcast_to(array.reshape(-1), length))

    def weight_name(self, unit: Unit) -> str:
        """What the names of a unit's weight begin with: its own, and the unit's where another has other codes of it."""
        assert unit.weight is not None
        first = next(q for (w, _), q in self.context.plan.weights.items() if w == unit.weight)
        same = _same(first, self.context.plan.weights[unit.weight, unit.node])
        return unit.weight if same else f"{unit.weight}_{unit.node}"

    def node(
        self, op: str, inputs: Sequence[ir.Value | None], output: str, dtype: ir.DataType, like: ir.Value
    ) -> ir.Node:
        """A node with one named, typed output of the shape of `like`."""
        made = ir.node(op, inputs, name=self.unique(f"{output}.{op}"))
        made.outputs[0].name = self.unique(output)
        made.outputs[0].type = ir.TensorType(dtype)
        made.outputs[0].shape = like.shape
        return made

    def replace(self, graph: ir.Graph, at: ir.Node, old: list[ir.Node], new: ir.Node) -> None:
        """Put `new` in the place of `old`, a chain that starts at `at`; it takes over the name of their result."""
        result, made = old[-1].outputs[0], new.outputs[0]
        name = result.name
        graph.insert_before(at, new)
        result.replace_all_uses_with(made, replace_graph_outputs=True)
        result.name, made.name = None, name
        graph.remove(list(reversed(old)), safe=True)

    def replace_by_codes(self, graph: ir.Graph, at: ir.Node, old: list[ir.Node], new: ir.Node) -> None:
        """As `replace`, where `new` writes the codes of the result: who read the result reads a DequantizeLinear."""
        result, codes = old[-1].outputs[0], new.outputs[0]
        name = name_of(result)
        codes.name = self.unique(f"{name}_quantized")
        codes.type = ir.TensorType(self.context.plan.tensors[name].spec.format.dtype)
        graph.insert_before(at, new)
        self.values[id(graph), "quantized", name] = codes
        dequantized = self.dequantized(graph, result)
        result.replace_all_uses_with(dequantized, replace_graph_outputs=True)
        self.values[id(graph), "dequantized", name] = dequantized
        if dequantized.is_graph_output():
            result.name, dequantized.name = None, name
        graph.remove(list(reversed(old)), safe=True)


def insert_behind(graph: ir.Graph, source: ir.Value, node: ir.Node) -> None:
    """Put `node` into `graph` right behind what makes `source`, or first where that lies outside."""
    producer = source.producer()
    if producer is not None and producer.graph is graph:
        graph.insert_after(producer, node)
    else:
        graph.insert_before(next(iter(graph)), node)


def axis_of(params: QuantParams) -> dict[str, int]:
    """The attributes of Q/DQ that say which elements share a scale."""
    match params.spec.granularity:
        case PerChannel(axis):
            return {"axis": axis}
        case PerBlock(axis, size):
            return {"axis": axis, "block_size": size}
    return {}


def _same(a: QuantizedWeight, b: QuantizedWeight) -> bool:
    return a is b or (
        a.params.spec == b.params.spec
        and np.array_equal(a.params.scale, b.params.scale)
        and np.array_equal(a.codes, b.codes)
    )
