"""An operation as a model of its own computes what it computes in the model, and copies do not meet."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.compiler import lone_operations
from qcompile.compiler.formats import UINT8
from qcompile.compiler.lone_operations import alone, conversion, copies, without_borders
from qcompile.compiler.params import params_from_range
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.targets import target_named
from qcompile.compiler.tensor_shapes import shapes_of
from qcompile.compiler.units import candidates
from qcompile.errors import ModelError
from tests.passes.harness import NAMED, model_of, outputs, run
from tests.passes.int8 import head, normal

TEXT = """g (float[N,4] x) => (float[N,4] y) {
  a = Relu (x)
  m = MatMul (a, w)
  n = Add (m, b)
  y = Softmax (n)
}"""
WEIGHTS = {"w": normal(4, 4), "b": normal(4)}


def named() -> ir.Model:
    model = model_of(head(21) + TEXT, WEIGHTS)
    run(model, *NAMED)
    return model


def test_an_operation_alone_computes_the_same() -> None:
    model = named()
    [product] = [c for c in candidates(model.graph, target_named("cpu")) if c.node.op_type == "MatMul"]
    shapes = shapes_of([*product.reads(), product.output], model, {"x": normal(3, 4)}, ("CPUExecutionProvider",))
    assert shapes == {"a": (3, 4), "n": (3, 4)}
    piece = alone(model, product, shapes)
    a = normal(3, 4, seed=2)
    np.testing.assert_allclose(outputs(piece, {"a": a})[0], a @ WEIGHTS["w"] + WEIGHTS["b"], rtol=1e-5)
    data, count = copies(piece)
    assert count == 8
    many = ir.from_proto(onnx.load_from_string(data))
    feeds = {f"{i}:a": normal(3, 4, seed=i) for i in range(count)}
    for i, got in enumerate(outputs(many, feeds)):
        np.testing.assert_allclose(got, feeds[f"{i}:a"] @ WEIGHTS["w"] + WEIGHTS["b"], rtol=1e-5)


def test_large_weights_have_few_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lone_operations, "_BYTES", 1000)
    for columns, expected in ((5, 8), (80, 3), (250, 1)):
        text = f"g (float[1,{columns}] x) => (float[1,{columns}] y) {{ y = Mul (x, w) }}"
        model = model_of(head(21) + text, {"w": normal(columns)})
        assert copies(model)[1] == expected


def test_what_does_not_fit_into_memory_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lone_operations, "_LARGEST", 16)
    with pytest.raises(ModelError, match="does not fit"):
        copies(named())


def test_shapes_without_a_sample_are_those_of_the_graph() -> None:
    model = named()
    values = [model.graph.inputs[0], model.graph.initializers["w"]]
    assert shapes_of(values, model, None, ("CPUExecutionProvider",)) == {"w": (4, 4)}


def test_borders_are_cut_off() -> None:
    text = """g (float[2] x) => (float[2] y) <float s = {0.5}, uint8 z = {128}> {
      q = QuantizeLinear (x, s, z)
      d = DequantizeLinear (q, s, z)
      r = Relu (d)
      p = QuantizeLinear (r, s, z)
      y = DequantizeLinear (p, s, z)
    }"""
    model = model_of(head(21) + text)
    run(model, *NAMED)
    without_borders(model)
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "Relu", "QuantizeLinear"]
    assert [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)] == [ir.DataType.UINT8] * 2
    given = np.array([0, 255], np.uint8)
    np.testing.assert_array_equal(outputs(model, {"q": given})[0], [128, 255])


def test_what_only_converts_stays() -> None:
    text = "g (uint8[2] x) => (float[2] y) <float s = {0.5}, uint8 z = {0}> { y = DequantizeLinear (x, s, z) }"
    model = model_of(head(21) + text)
    without_borders(model)
    assert [node.op_type for node in model.graph] == ["DequantizeLinear"]


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16])
def test_conversions(dtype: ir.DataType) -> None:
    params = params_from_range(QuantSpec(UINT8), 0.0, 2.55)
    x = np.array([0, 1, 2.5, 5], dtype.numpy())
    there = outputs(conversion("QuantizeLinear", params, (4,), dtype, 21), {"x": x})
    assert there[0].tolist() == [0, 100, 250, 255]
    back = outputs(conversion("DequantizeLinear", params, (4,), dtype, 21), {"x": there[0]})
    assert back[0].dtype == dtype.numpy()
    np.testing.assert_allclose(back[0], [0, 1, 2.5, 2.55], atol=0.01)
