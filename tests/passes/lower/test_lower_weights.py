"""Weights stored as codes that the runtime restores when it loads the model."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.compiler.formats import FORMATS
from qcompile.compiler.params import dequantize
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.targets.table import Lowering
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.passes.lower.lower_weights import LowerWeights
from tests.passes.int8 import check, head, int8, normal
from tests.passes.lower.weight_only import restored, weight_only

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


@pytest.mark.parametrize("depth", [32, 40])
@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"int32", "int16", "uint16"}))
def test_every_format_is_restored_when_the_model_loads(name: str, depth: int) -> None:
    fmt = FORMATS[name]
    spec, columns = QuantSpec(fmt, symmetric=not name.startswith("u")), 6
    text = head(21) + f"g (float[4,{depth}] x) => (float[4,{columns}] y) {{ y = MatMul (x, w) }}"
    sample, block = {"x": normal(4, depth)}, fmt.block or 16
    weights = {"w": normal(depth, columns)}
    result = weight_only(text, weights, sample, spec, block, LowerWeights(), lowering=Lowering.EMULATED)
    assert result.kernels() == ["MatMul"]
    np.testing.assert_allclose(result.optimized["y"], sample["x"] @ restored(result), rtol=0, atol=1e-4)
    stored = result.initializers()["w_quantized"].const_value
    assert stored is not None
    assert stored.nbytes * 8 <= max(fmt.bits, 4) * columns * -(-depth // block) * block or fmt.bits == 6


@pytest.mark.parametrize("body", ["Gemm <transB = 1> (x, w)", "Gemm (x, w)"])
def test_one_scale_for_each_channel_needs_no_blocks(body: str) -> None:
    shape = (6, 32) if "transB" in body else (32, 6)
    text = head(21) + f"g (float[4,32] x) => (float[4,6] y) {{ y = {body} }}"
    spec, sample = QuantSpec(FORMATS["int4"], symmetric=False), {"x": normal(4, 32)}
    result = weight_only(text, {"w": normal(*shape)}, sample, spec, None, LowerWeights(), lowering=Lowering.EMULATED)
    w = restored(result)
    np.testing.assert_allclose(result.optimized["y"], sample["x"] @ (w.T if "transB" in body else w), rtol=0, atol=1e-4)
