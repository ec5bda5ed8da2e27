"""Weights stored as int8 that the runtime restores when it loads the model."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.compiler.params import dequantize
from qcompile.frontends.builtin_recipes import find_recipe
from tests.passes.int8 import check, head, int8, normal

GRU = 'g (float[T,2,12] x) => (float[{d},2,8] y) {{ s, y = GRU <hidden_size = 8, direction = "{way}"> (x, w, r, b) }}'


@pytest.mark.parametrize(("way", "directions"), [("forward", 1), ("bidirectional", 2)])
def test_the_runtime_restores_the_weights_once(way: str, directions: int) -> None:
    weights = {
        "w": normal(directions, 24, 12) / 3,
        "r": normal(directions, 24, 8) / 3,
        "b": normal(directions, 48) / 10,
    }
    text = head() + GRU.format(d=directions, way=way)
    result = int8(text, weights, [{"x": normal(10, 2, 12)}], recipe=find_recipe("int8-dynamic"))
    assert result.forms == {"s": "WEIGHTS"}
    assert [n.op_type for n in result.model.graph] == ["Cast", "Mul", "Cast", "Mul", "GRU"]
    assert result.kernels() == ["GRU"], "folded when the model loads"
    for name in "wr":
        stored = result.plan.weights[name, "GRU_0"]
        assert np.abs(dequantize(stored.codes, stored.params) - weights[name]).max() <= stored.params.scale.max() / 2
    check(result, least=30)


def test_static_quantization_leaves_recurrent_operators_float() -> None:
    weights = {"w": normal(1, 24, 12), "r": normal(1, 24, 8), "b": normal(1, 48)}
    result = int8(head() + GRU.format(d=1, way="forward"), weights, [{"x": normal(10, 2, 12)}])
    assert "fixed by calibration" in result.plan.kept_float["GRU_0"]
