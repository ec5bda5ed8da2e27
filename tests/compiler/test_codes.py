"""Names and sharing of what lowering makes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompile.compiler.codes import Codes
from qcompile.compiler.context import CompileContext
from qcompile.compiler.formats import INT8, UINT8
from qcompile.compiler.params import params_from_range
from qcompile.compiler.plan import Form, QuantizedWeight, Unit
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.targets import target_named
from tests.passes.harness import model_of
from tests.passes.int8 import head, normal

BRANCHES = (
    head()
    + """g (float[4,4] x, bool c) => (float[4,4] y) {
  h = Relu (x)
  y = If (c) <
    then_branch = t () => (float[4,4] p) { p = Neg (h) },
    else_branch = e () => (float[4,4] q) { q = Abs (h) }
  >
}"""
)


def prepared(text: str = BRANCHES, **weights: np.ndarray) -> tuple[ir.Model, Codes]:  # type: ignore[type-arg]
    model = model_of(text, weights)
    context = CompileContext(target_named("cpu"), Path("unused"))
    for name in ("x", "h"):
        context.plan.tensors[name] = params_from_range(QuantSpec(UINT8), -1, 1)
    return model, Codes.of(model, context, "a pass")


def value(model: ir.Model, name: str) -> ir.Value:
    return next(v for v in [*model.graph.inputs, *(v for n in model.graph for v in n.outputs)] if v.name == name)


def test_conversions_are_made_once_in_each_graph() -> None:
    model, codes = prepared()
    h, branch = value(model, "h"), next(iter(model.graph.subgraphs()))
    outer, inner = codes.dequantized(model.graph, h), codes.dequantized(branch, h)
    assert codes.dequantized(model.graph, h) is outer
    assert codes.dequantized(branch, h) is inner
    assert codes.quantized(model.graph, h) is outer.producer().inputs[0]  # type: ignore[union-attr]
    assert (outer.name, inner.name) == ("h_dequantized", "h_dequantized_2")
    assert [n.op_type for n in model.graph] == ["Relu", "QuantizeLinear", "DequantizeLinear", "If"]
    assert [n.op_type for n in branch][:2] == ["QuantizeLinear", "DequantizeLinear"]
    assert sorted(branch.initializers) == ["h_scale_2", "h_zero_point_2"]


def test_an_input_is_converted_before_everything() -> None:
    model, codes = prepared()
    codes.dequantized(model.graph, value(model, "x"))
    assert [n.op_type for n in model.graph] == ["QuantizeLinear", "DequantizeLinear", "Relu", "If"]


def test_a_value_known_by_its_dequantized_form() -> None:
    """Once a unit writes codes, its readers see V_dequantized; by name they still get V's codes."""
    model, codes = prepared()
    again = codes.dequantized(model.graph, value(model, "h"))
    assert codes.quantized(model.graph, again, "h").name == "h_quantized"
    assert codes.dequantized(model.graph, again, "h") is again


def test_names_of_nodes_and_values_are_taken() -> None:
    model, codes = prepared(BRANCHES.replace("h = Relu (x)", "h = Relu (x) h_quantized = Exp (x)"))
    assert codes.unique("h_quantized") == "h_quantized_2"
    assert codes.unique("h_quantized") == "h_quantized_3"
    assert codes.unique("p") == "p_2", "names of branches too"
    model.graph.node(0).name = "my node"
    assert Codes(model, codes.context, "a pass").unique("my node") == "my node_2"


def test_constants_of_one_name_are_shared_by_content() -> None:
    model, codes = prepared()
    first = codes.constant(model.graph, "k", np.int8([1, 2]))
    assert codes.constant(model.graph, "k", np.int8([1, 2])) is first
    other = codes.constant(model.graph, "k", np.int8([1, 3]))
    kind = codes.constant(model.graph, "k", np.uint8([1, 2]))
    assert [v.name for v in (first, other, kind)] == ["k", "k_2", "k_3"]
    assert codes.constant(model.graph, "k", np.uint8([1, 2])) is kind


def unit(node: str) -> Unit:
    return Unit(node, "Gemm", Form.INPUTS, ("x", None), f"{node}.out", weight="w")


def test_weights_are_shared_when_they_are_the_same() -> None:
    model, codes = prepared()
    weight, params = np.arange(16, dtype=np.int32).reshape(4, 4), params_from_range(QuantSpec(INT8), -1, 1)
    for node, scale in (("a", 1), ("b", 1), ("c", 2)):
        codes.context.plan.weights["w", node] = QuantizedWeight(params_from_range(QuantSpec(INT8), -scale, 1), weight)
    codes.context.plan.weights["w", "d"] = QuantizedWeight(params, weight + 1)
    made = {node: codes.weight(model.graph, unit(node)) for node in "abcd"}
    assert made["a"] == made["b"]
    assert {k: str(v[0].name) for k, v in made.items()} == {
        "a": "w_quantized",
        "b": "w_quantized",
        "c": "w_c_quantized",
        "d": "w_d_quantized",
    }
    assert made["a"][0].dtype == ir.DataType.INT8


SCRIPT = """
import sys
from tests.passes.lower.test_lower_qdq import CASES
from tests.passes.int8 import head, int8
case = CASES["outputs that are read inside"]
sys.stdout.buffer.write(int8(head() + case.text, case.weights, [case.sample]).data)
"""


def test_the_same_bytes_in_every_process() -> None:
    made = {
        hashlib.sha256(
            subprocess.run(
                [sys.executable, "-c", SCRIPT],
                cwd=Path(__file__).parents[2],
                env=os.environ | {"PYTHONHASHSEED": seed},
                capture_output=True,
                check=True,
            ).stdout
        ).hexdigest()
        for seed in ("0", "5")
    }
    assert len(made) == 1


def test_a_constant_operand_has_codes_and_no_conversion_of_its_own() -> None:
    text = head() + "g (float[4,4] x) => (float[4,4] y) { y = Add (x, k) }"
    model, codes = prepared(text, k=normal(4, 4))
    codes.context.plan.tensors["k"] = params_from_range(QuantSpec(UINT8), -3, 3)
    made = codes.quantized(model.graph, model.graph.initializers["k"])
    assert made.is_initializer()
    assert (made.name, made.dtype) == ("k_quantized", ir.DataType.UINT8)
    assert model.graph.num_nodes() == 1
