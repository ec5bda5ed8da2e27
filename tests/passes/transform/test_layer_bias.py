"""The bias of a layer changes by what is asked for, wherever it lies."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.linear_layers import linear_layers
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.transform.layer_bias import add_to_bias
from tests.passes.harness import NAMED, assert_close, model_of, outputs, run

HEAD = '<ir_version: 10, opset_import: ["": 20]> g (float[2, 3] x) => (float[2, 4] y) '
LAYERS = {
    "product": "{ y = MatMul (x, w) }",
    "product with a bias": "{ p = MatMul (x, w) y = Add (b, p) }",
    "Gemm": "{ y = Gemm (x, w) }",
    "Gemm with a bias that another reads": "{ p = Gemm (x, w, b) y = Add (p, b) }",
}


@pytest.mark.parametrize("layer", LAYERS)
def test_change(layer: str) -> None:
    rng = np.random.default_rng(0)
    text, change = HEAD + LAYERS[layer], rng.standard_normal(4).astype(np.float32)
    weights = {"w": rng.standard_normal((3, 4)).astype(np.float32)}
    if "b" in LAYERS[layer].replace("Gemm", ""):
        weights["b"] = rng.standard_normal(4).astype(np.float32)
    model = model_of(text, weights)
    run(model, *NAMED)
    feeds = {"x": rng.standard_normal((2, 3)).astype(np.float32)}
    before = outputs(model, feeds)
    [found] = linear_layers(model)[0]
    add_to_bias(found, change, Names(model), "test")
    assert_close([before[0] + change], outputs(model, feeds))
    assert model.graph.outputs[0].name == "y"


def test_convolution() -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 20]> g (float[1, 2, 4, 4] x) => (float[1, 3, 2, 2] y) { y = Conv (x, w) }'
    )
    rng = np.random.default_rng(0)
    model = model_of(text, {"w": rng.standard_normal((3, 2, 3, 3)).astype(np.float32)})
    run(model, *NAMED)
    feeds = {"x": rng.standard_normal((1, 2, 4, 4)).astype(np.float32)}
    before, change = outputs(model, feeds), np.array([1, -2, 3], np.float32)
    add_to_bias(linear_layers(model)[0][0], change, Names(model), "test")
    assert_close([before[0] + change[:, None, None]], outputs(model, feeds))
    assert isinstance(model.graph, ir.Graph)
