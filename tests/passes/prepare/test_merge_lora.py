"""Adapters merged into weights, whatever their layout; what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.printer import print_model
from qcompile.errors import DataError, RecipeError
from qcompile.passes.prepare.merge_lora import MergeLora
from tests.golden import assert_golden
from tests.passes.adapters import low_rank, write
from tests.passes.harness import NAMED, Arrays, context, model_of, outputs, run

_TEXT = """<ir_version: 10, opset_import: ["": 20]>
g (float[B,4] x, int64[B] ids) => (float[B,3] y, float[B,6] z, float[B,6] t) {
  h = MatMul (x, w_a) n = Mul (h, gamma) y = Add (n, b_a) z = Gemm <transB = 1> (y, w_b, b_b) t = Gather (table, ids)
}"""


def _weights() -> Arrays:
    rng = np.random.default_rng(0)
    shapes = {"w_a": (4, 3), "gamma": (3,), "b_a": (3,), "w_b": (6, 3), "b_b": (6,), "table": (5, 6)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


_NAMES = {"w_a": "m.a.weight", "gamma": "m.norm.weight", "w_b": "m.b.weight", "b_b": "m.b.bias", "table": "m.t.weight"}
_FEEDS: Arrays = {
    "x": np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32),
    "ids": np.array([3, 1], np.int64),
}


def _model(weights: Arrays) -> ir.Model:
    model = model_of(_TEXT, weights)
    for name, new in _NAMES.items():
        model.graph.initializers[name].name = new
    return model


def test_matmul_gemm_and_table(tmp_path: Path) -> None:
    weights = _weights()
    tensors = low_rank("m.a", 3, 4) | low_rank("m.b", 6, 3, seed=1)
    rng = np.random.default_rng(2)
    tensors["m.t.lora_embedding_A"] = rng.standard_normal((2, 5)).astype(np.float32)
    tensors["m.t.lora_embedding_B"] = rng.standard_normal((6, 2)).astype(np.float32)
    model, on = _model(weights), context()
    before = print_model(model)
    run(model, *NAMED, MergeLora(adapter=str(write(tmp_path / "it", tensors))), on=on)
    delta = {m: 2 * tensors[f"m.{m}.lora_B.weight"] @ tensors[f"m.{m}.lora_A.weight"] for m in "ab"}
    expected = weights | {
        "w_a": weights["w_a"] + delta["a"].T,
        "w_b": weights["w_b"] + delta["b"],
        "table": weights["table"] + 2 * (tensors["m.t.lora_embedding_B"] @ tensors["m.t.lora_embedding_A"]).T,
    }
    for want, got in zip(outputs(_model(expected), _FEEDS), outputs(model, _FEEDS), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert "adapter 'it': 3 layers updated (rank 2)" in on.notices[-1]
    assert_golden("passes/merge-lora", f"# before\n{before}\n# after\n{print_model(model, provenance=True)}")


def test_tensors_trained_whole(tmp_path: Path) -> None:
    """A bias, a norm, and a matrix in the layout of the framework."""
    new = {name: array + 1 for name, array in _weights().items()}
    tensors = low_rank("m.a", 3, 4) | {
        "m.b.base_layer.bias": new["b_b"],
        "m.b.weight": new["w_b"],
        "m.norm.weight": new["gamma"],
    }
    tensors["m.a.lora_B.weight"][:] = 0
    model = _model(_weights())
    run(model, *NAMED, MergeLora(adapter=str(write(tmp_path, tensors))))
    expected = _model(_weights() | {name: new[name] for name in ("b_b", "w_b", "gamma")})
    for want, got in zip(outputs(expected, _FEEDS), outputs(model, _FEEDS), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_weight_that_others_read_stays_theirs(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[B,4] x) => (float[B,4] y, float[B,4] z)
    { y = MatMul (x, w) z = MatMul (x, w) }"""
    weight = np.eye(4, dtype=np.float32)
    model = model_of(text, {"w": weight})
    for node, name in zip(model.graph, ("/m/a/MatMul", "/m/b/MatMul"), strict=True):
        node.name = name
    tensors = low_rank("m.a", 4, 4)
    run(model, *NAMED, MergeLora(adapter=str(write(tmp_path, tensors))))
    y, z = outputs(model, {"x": weight})
    np.testing.assert_allclose(
        y, weight + 2 * (tensors["m.a.lora_B.weight"] @ tensors["m.a.lora_A.weight"]).T, rtol=1e-6
    )
    np.testing.assert_array_equal(z, weight)


def test_a_tensor_with_two_places_is_refused(tmp_path: Path) -> None:
    """Two norms that an exporter keeps in one constant; two layers whose names end alike."""
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[B,3] x) => (float[B,3] y)
    { a = Mul (x, gamma) m = MatMul (a, w) n = MatMul (m, v) y = Mul (n, gamma) }"""
    eye = np.eye(3, dtype=np.float32)
    model = model_of(text, {"gamma": np.ones(3, np.float32), "w": eye, "v": eye})
    model.graph.initializers["gamma"].name = "m.norm.weight"
    model.graph[1].name, model.graph[2].name = "/m/0/fc/MatMul", "/m/1/fc/MatMul"
    for tensors in ({"m.norm.weight": np.zeros(3, np.float32)}, {"fc.weight": 2 * eye}):
        with pytest.raises(DataError, match=r"1 of 1 tensors .* no place of their own"):
            run(model, *NAMED, MergeLora(adapter=str(write(tmp_path, tensors))))


def test_a_bias_that_an_add_brings(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[B,4] x) => (float[B,3] y)
    { h = MatMul (x, w) y = Add (b, h) }"""
    weight, bias = np.ones((4, 3), np.float32), np.arange(3, dtype=np.float32)
    model = model_of(text, {"w": weight, "b": bias})
    model.graph[0].name = "/m/a/MatMul"
    run(model, *NAMED, MergeLora(adapter=str(write(tmp_path, {"m.a.bias": bias + 5}))))
    np.testing.assert_array_equal(outputs(model, {"x": weight[:, :1].T})[0], [bias + 9])


def test_zeros_that_are_filled_are_told(tmp_path: Path) -> None:
    weights = _weights()
    weights["w_b"][:, :2] = 0
    model, on = _model(weights), context()
    folder = write(tmp_path, low_rank("m.a", 3, 4) | low_rank("m.b", 6, 3))
    run(model, *NAMED, MergeLora(adapter=str(folder)), on=on)
    assert "fills the zeros of 1 pruned layer" in on.notices[-1]


def test_half_precision_stays(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["": 20]> g (float16[B,4] x) => (float16[B,3] y) { y = MatMul (x, w) }'
    model = model_of(text, {"w": np.ones((4, 3), np.float16)})
    next(iter(model.graph)).name = "/m/a/MatMul"
    run(model, *NAMED, MergeLora(adapter=str(write(tmp_path / "it", low_rank("m.a", 3, 4)))))
    assert outputs(model, {"x": np.ones((1, 4), np.float16)})[0].dtype == np.float16
    huge = write(tmp_path / "huge", low_rank("m.a", 3, 4), lora_alpha=1e6)
    with pytest.raises(DataError, match=r"module 'm\.a' makes the weight of layer .* infinite in float16"):
        run(model, *NAMED, MergeLora(adapter=str(huge)))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    """And nothing is merged."""
    model = _model(_weights())
    run(model, *NAMED)
    before = outputs(model, _FEEDS)
    wrong = low_rank("m.a", 3, 5) | low_rank("m.b", 6, 3)
    with pytest.raises(DataError, match=r"1 of 2 modules.*m\.a: B A is 3 x 5, layer 'MatMul_0' is 3 x 4"):
        run(model, *NAMED, MergeLora(adapter=str(write(tmp_path / "a", wrong))))
    whole = low_rank("m.a", 3, 4) | {"m.gone.bias": np.ones(3, np.float32)}
    with pytest.raises(DataError, match=r"1 of 1 tensors.*m\.gone\.bias"):
        run(model, *NAMED, MergeLora(adapter=str(write(tmp_path / "b", whole))))
    with pytest.raises(RecipeError, match="no adapter"):
        run(model, *NAMED, MergeLora())
    for want, got in zip(before, outputs(model, _FEEDS), strict=True):
        np.testing.assert_array_equal(got, want)
