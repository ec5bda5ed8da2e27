"""Branches of residual sums, and models without some of them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.errors import PassError
from qcompile.passes.transform.channels.branches import remove_branches, residual_branches
from tests.passes.decoder import decoder
from tests.passes.harness import assert_close, model_of, outputs
from tests.passes.llama import llama
from tests.passes.transform.channels.dead import prepared, whole


def test_each_layer_of_a_decoder_has_two() -> None:
    model = prepared(llama())
    sums = [b.sum for b in residual_branches(model)]
    made = {str(n.name): n.outputs[0].name for n in model.graph}
    assert [made[name] for name in sums] == ["h0", "y0", "h1", "y"]


def test_a_layer_that_adds_nothing_may_go() -> None:
    model = prepared(llama())
    for name in ("w_o1", "w_down1"):
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(np.zeros_like(value.const_value.numpy()), name=name)
    smaller = model.clone()
    remove_branches(smaller, residual_branches(smaller)[2:], "test")
    onnx.checker.check_model(ir.to_proto(smaller), full_check=True)
    assert "w_q1" not in smaller.graph.initializers
    assert len(residual_branches(smaller)) == 2
    x = np.random.default_rng(0).standard_normal((2, 5, 32)).astype(np.float32)
    assert_close(outputs(model, {"x": x}), outputs(smaller, {"x": x}), 1e-6)


def test_a_branch_that_fills_a_cache_stays() -> None:
    assert residual_branches(prepared(decoder())) == []


SUMS = {
    "a branch": ("r = Relu (h) f = MatMul (r, w) y = Add (f, h)", 1),
    "of what the model is given, returned": ("f = MatMul (x, w) y = Add (x, f)", 0),
    "a weight that is read elsewhere": ("f = MatMul (h, w) g = Add (h, f) y = Mul (f, g)", 0),
    "two branches of one value": ("a = MatMul (h, w) b = MatMul (h, w2) y = Add (a, b)", 0),
    "no weight": ("f = Tanh (h) y = Add (h, f)", 0),
    "stretched": ("m = ReduceMax <keepdims = 1> (h, last) f = MatMul (h, w) g = Add (m, f) y = Add (m, g)", 0),
    "one inside another": ("a = MatMul (h, w) b = Add (h, a) c = MatMul (b, w2) y = Add (h, c)", 2),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums(name: str) -> None:
    body, count = SUMS[name]
    weights = {"w": whole(4, 4), "w2": whole(4, 4, seed=1), "last": np.array([-1])}
    used = {name: array for name, array in weights.items() if f" {name})" in body}
    model = prepared(
        model_of(
            f'<ir_version: 10, opset_import: ["": 20]> g (float[2,4] x) => (float[2,4] y) {{ h = Relu (x) {body} }}',
            used,
        )
    )
    branches = residual_branches(model)
    assert len(branches) == count
    for branch in branches:
        smaller = model.clone()
        remove_branches(smaller, [branch], "test")
        onnx.checker.check_model(ir.to_proto(smaller), full_check=True)
        assert len(smaller.graph.initializers) < len(model.graph.initializers)


def test_something_is_left() -> None:
    model = prepared(
        model_of(
            '<ir_version: 10, opset_import: ["": 20]> g (float[2,4] x) => (float[2,4] y) '
            "{ a = MatMul (x, w) b = Add (x, a) c = MatMul (b, w2) y = Add (b, c) }",
            {"w": whole(4, 4), "w2": whole(4, 4, seed=1)},
        )
    )
    with pytest.raises(PassError, match="return what it is given"):
        remove_branches(model, residual_branches(model), "test")
