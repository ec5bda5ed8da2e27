"""Write a quantized key-value cache: inputs and outputs of the model become codes.

    Concat                 codes = QuantizeLinear(new / s);  present = Concat(past, codes);  readers read present * s
    Concat, 4 bits         codes + 8, two a byte, the even column in the low half
    GroupQueryAttention    its own types: inputs k_scale and v_scale, attributes k_quant_type and v_quant_type

s: float32 [1, heads, 1, columns]. What is read back is what was kept, so a text that is read token by token gives
what it gives as a whole. `qcompile.cache` in the model's metadata says which input belongs to which output, in which
format and with which scales. Source: ONNX Runtime's contrib operators; see quantize-kv-cache.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.compiler.codes import Codes
from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import name_of
from qcompile.compiler.kv_caches import COLUMNS, KeyValueCache, find_caches
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import QuantizedCache
from qcompile.compiler.provenance import stamp
from qcompile.runtime.kv_cache import METADATA, Entry

_FLOAT = ir.DataType.FLOAT


class LowerKvCache(Pass):
    """Let the model take and return its key-value cache as codes."""

    name: ClassVar[str] = "lower-kv-cache"
    phase: ClassVar[Phase] = Phase.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_NAMES})
    changes_interface: ClassVar[bool] = True

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        codes, entries = Codes.of(model, context, self.name), []
        for cache in find_caches(model):
            planned = context.plan.caches.get(name_of(cache.past))
            if planned is not None:
                entries.append(_Writer(model.graph, cache, planned, codes).write())
        if entries:
            model.metadata_props[METADATA] = json.dumps([entry._asdict() for entry in entries])
        return bool(entries)


class _Writer:
    """One cache on its way into codes."""

    def __init__(self, graph: ir.Graph, cache: KeyValueCache, planned: QuantizedCache, codes: Codes) -> None:
        self.graph, self.cache, self.codes = graph, cache, codes
        self.format = planned.params.spec.format
        self.packed = self.format.bits == 4
        self.stored = ir.DataType.UINT8 if self.packed else self.format.dtype
        heads, self.columns = planned.params.scale.shape
        array = planned.params.scale.reshape(1, heads, 1, self.columns)
        self.scale = codes.constant(graph, f"{planned.past}_scale", array)

    def write(self) -> Entry:
        cache = self.cache
        if cache.in_attention:
            self.attention()
        else:
            self.restore(cache.present)
            self.quantize(cache.observed)
        if self.packed:
            self.halve()
        for value in (cache.past, cache.present):
            value.type = ir.TensorType(self.stored)
        stamp(cache.node, self.codes.made_by, [cache.node])
        return Entry(name_of(cache.past), name_of(cache.present), self.format.name, name_of(self.scale))

    def attention(self) -> None:
        node = self.cache.node
        key = node.inputs[3] is self.cache.past
        node.resize_inputs(max(len(node.inputs), 14))
        node.replace_input_with(12 if key else 13, self.scale)
        node.attributes.add(ir.AttrString("k_quant_type" if key else "v_quant_type", "PER_CHANNEL"))
        node.attributes.add(ir.AttrInt64("kv_cache_bit_width", self.format.bits))

    def quantize(self, new: ir.Value) -> None:
        """Between the new keys or values and the Concat."""
        chain = _Chain(self, name_of(new))
        scaled = chain.add("Div", [new, self.scale], "scaled")
        if not self.packed:
            zero = self.codes.constant(self.graph, "cache_zero_point", np.int8(0))
            codes = chain.add("QuantizeLinear", [scaled, self.number(1), zero], "codes", self.stored)
        else:
            whole = chain.add("Round", [scaled], "whole")
            clipped = chain.add(
                "Clip", [whole, self.number(-self.format.high), self.number(self.format.high)], "clipped"
            )
            shifted = chain.add("Add", [clipped, self.number(8)], "shifted")
            end, axis, step = self.integers(2**31), self.integers(COLUMNS), self.integers(2)
            low, odd = (
                chain.add("Slice", [shifted, self.integers(first), end, axis, step], part)
                for first, part in ((0, "even"), (1, "odd"))
            )
            both = chain.add("Add", [low, chain.add("Mul", [odd, self.number(16)], "high")], "packed")
            codes = chain.cast(both, "codes", self.stored)
        self.graph.insert_before(self.cache.node, chain.nodes)
        self.cache.node.replace_input_with(1, codes)

    def restore(self, present: ir.Value) -> None:
        """Between the cache and those who read its values."""
        readers = [use for use in present.uses() if self.packed or use.node.op_type != "Shape"]
        chain = _Chain(self, name_of(present))
        values = chain.cast(present, "codes_float", _FLOAT)
        if self.packed:
            sixteenth = chain.add("Mul", [values, self.number(1 / 16)], "sixteenth")
            high = chain.add("Floor", [sixteenth], "high")
            low = chain.add("Sub", [values, chain.add("Mul", [high, self.number(16)], "high_part")], "low")
            last = self.integers(-1)
            pair = [chain.add("Unsqueeze", [half, last], part) for half, part in ((low, "even"), (high, "odd"))]
            pairs = chain.add("Concat", pair, "pairs")
            pairs.producer().attributes.add(ir.AttrInt64("axis", -1))  # type: ignore[union-attr]
            flat = chain.add("Reshape", [pairs, self.integers(0, 0, 0, self.columns)], "unpacked")
            values = chain.add("Sub", [flat, self.number(8)], "centred")
        values = chain.add("Mul", [values, self.scale], "restored")
        values.shape = present.shape
        if readers:
            self.graph.insert_after(self.cache.node, chain.nodes)
        for reader, position in readers:
            reader.replace_input_with(position, values)

    def halve(self) -> None:
        """Two columns lie in one byte; who asks for the shape of the past is told of the columns all the same."""
        for value in (self.cache.past, self.cache.present):
            assert value.shape is not None
            value.shape = ir.Shape([*value.shape[:COLUMNS], self.columns // 2])
        for node, _ in list(self.cache.past.uses()):
            if node.op_type != "Shape":
                continue
            start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", 4)
            if start <= COLUMNS and end in (COLUMNS + 1, 4):
                factors = np.array([1, 1, 1, 2], np.int64)[start:end]
                shape, readers = node.outputs[0], list(node.outputs[0].uses())
                chain = _Chain(self, name_of(shape))
                whole = self.codes.constant(self.graph, f"{name_of(shape)}_packing", factors)
                unpacked = chain.add("Mul", [shape, whole], "unpacked", ir.DataType.INT64)
                self.graph.insert_after(node, chain.nodes)
                for reader, position in readers:
                    reader.replace_input_with(position, unpacked)

    def number(self, value: float) -> ir.Value:
        return self.codes.constant(self.graph, f"cache_{value:g}", np.float32(value))

    def integers(self, *values: int) -> ir.Value:
        return self.codes.constant(self.graph, "cache_" + "_".join(map(str, values)), np.array(values, np.int64))


class _Chain:
    """Nodes in order, whose results are called BASE_WHAT."""

    def __init__(self, writer: _Writer, base: str) -> None:
        self.codes, self.base, self.source = writer.codes, base, writer.cache.node
        self.nodes: list[ir.Node] = []

    def add(self, op_type: str, inputs: Sequence[ir.Value], what: str, dtype: ir.DataType = _FLOAT) -> ir.Value:
        made = self.codes.node(op_type, inputs, f"{self.base}_{what}", dtype, inputs[0])
        made.outputs[0].shape = None
        stamp(made, self.codes.made_by, [self.source])
        self.nodes.append(made)
        return made.outputs[0]

    def cast(self, value: ir.Value, what: str, dtype: ir.DataType) -> ir.Value:
        made = self.add("Cast", [value], what, dtype)
        self.nodes[-1].attributes.add(ir.AttrInt64("to", int(dtype)))
        return made
