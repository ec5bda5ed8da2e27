"""LSTM with int8 weights, whose input and state are quantized per tensor each time they run.

    gates_t = s_x s_w (X_q - z_x) W_q + s_h,t s_r (H_q,t-1 - z_h,t) R_q + B

as com.microsoft::DynamicQuantizeLSTM. W_q: int8 [D, I, 4H], R_q: int8 [D, H, 4H], both transposed against
ONNX's LSTM; s_w, s_r: float32 [D, 4H]; zero points 0. X is quantized as a whole, the state anew at every
step, so rounding does not gather along the sequence. Biases, initial states, lengths and peepholes stay
float. Source: ONNX Runtime's contrib operators.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.compiler.codes import Codes
from qcompile.compiler.context import CompileContext
from qcompile.compiler.passes import Fact, Pass, Phase
from qcompile.compiler.plan import Unit
from qcompile.compiler.provenance import stamp
from qcompile.compiler.targets.table import Lowering
from qcompile.compiler.units import planned_as

_FLOAT_INPUTS = 8
"""X, W, R, B, sequence lengths, initial state, initial cell, peepholes."""


class LowerDynamicLstm(Pass):
    """Write LSTM units as DynamicQuantizeLSTM."""

    name: ClassVar[str] = "lower-dynamic-lstm"
    phase: ClassVar[Phase] = Phase.LOWER
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})

    def run(self, model: ir.Model, context: CompileContext) -> bool:
        codes = Codes.of(model, context, self.name)
        chosen = planned_as(Lowering.DYNAMIC_LSTM, model, context)
        for node, unit, _ in chosen:
            _lower(node, unit, codes)
        if chosen:
            model.graph.opset_imports["com.microsoft"] = 1
        return bool(chosen)


def _lower(node: ir.Node, unit: Unit, codes: Codes) -> None:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    weight = _weight(graph, unit, codes)
    state = _weight(graph, replace(unit, weight=unit.state_weight), codes)
    given = [*node.inputs, *([None] * (_FLOAT_INPUTS - len(node.inputs)))]
    made = ir.Node(
        "com.microsoft",
        "DynamicQuantizeLSTM",
        [given[0], weight[0], state[0], *given[3:], *weight[1:], *state[1:]],
        [a for a in node.attributes.values() if a.name != "layout"],
        name=codes.unique(unit.lowered),
        outputs=[ir.Value(type=old.type, shape=old.shape) for old in node.outputs],
    )
    stamp(made, codes.made_by, [node])
    graph.insert_before(node, made)
    for old, new in zip(node.outputs, made.outputs, strict=True):
        name = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name, new.name = None, name
    graph.remove(node, safe=True)


def _weight(graph: ir.Graph, unit: Unit, codes: Codes) -> list[ir.Value]:
    """Codes [D, columns, 4H], scale and zero point [D, 4H]."""
    quantized, name = codes.context.plan.weights[str(unit.weight), unit.node], codes.weight_name(unit)
    scale = quantized.params.scale[..., 0]
    return [
        codes.constant(graph, f"{name}_transposed", np.ascontiguousarray(np.swapaxes(quantized.codes, 1, 2))),
        codes.constant(graph, f"{name}_scale", scale),
        codes.constant(graph, f"{name}_zero_point", np.zeros(scale.shape, np.int8)),
    ]
