from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.context import CompileContext
from qcompile.compiler.graph import constant
from qcompile.compiler.inputs import model_inputs
from qcompile.compiler.params import dequantize
from qcompile.compiler.passes import Pass
from qcompile.compiler.printer import print_model
from qcompile.frontends.calibration_data import open_calibration
from qcompile.passes.analyze.calibrate import Calibrate
from qcompile.passes.prepare.fold_batch_norm import FoldBatchNorm
from qcompile.passes.quantize.compensate_bias_analytic import CompensateBiasAnalytic
from qcompile.passes.quantize.place_int8 import PlaceInt8
from qcompile.passes.quantize.round_to_nearest import RoundToNearest
from tests.golden import assert_golden
from tests.passes.harness import NAMED, context, model_of, outputs, run
from tests.sweep.harness import eager_target

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
STEPS: list[Pass] = [*NAMED, FoldBatchNorm(), Calibrate(), PlaceInt8(), RoundToNearest(), CompensateBiasAnalytic()]


def normal(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def network(activation: str, last: str, bias: bool) -> ir.Model:
    """A rotation, so that independent normal inputs stay so; a BatchNormalization that knows it; a layer."""
    weights = {
        "w1": np.linalg.qr(normal(1, 8, 8))[0].astype(np.float32).reshape(8, 8, 1, 1),
        "g": np.linspace(0.5, 4, 8, dtype=np.float32),
        "o": np.linspace(-2, 6, 8, dtype=np.float32),
        "m": np.zeros(8, np.float32),
        "v": np.ones(8, np.float32),
        "w2": normal(2, 4, 8 if "group" not in last else 2, 1, 1),
        "f": normal(2, 4, 8),
        "b": normal(3, 4),
        "zero": np.float32(0),
        "six": np.float32(6),
    }
    text = (
        f"{HEAD} g (float[N,8,4,4] x) => (float[N,C,H,W] y) {{ c = Conv (x, w1) "
        f"n = BatchNormalization (c, g, o, m, v) r = {activation} {last.replace('BIAS', ', b' if bias else '')} }}"
    )
    return model_of(text, {k: w for k, w in weights.items() if f" {k}" in text or f"({k}" in text})


def prepared(model: ir.Model, data: np.ndarray[Any, Any]) -> CompileContext:
    on = context()
    on.target = eager_target()
    on.calibration = open_calibration([{"x": data[i : i + 8]} for i in range(0, 64, 8)], model_inputs(model))
    return on


def with_rounded_weights(model: ir.Model, on: CompileContext) -> ir.Model:
    """The float graph, its weights as their codes say."""
    copy = model.clone()
    for (name, _), codes in on.plan.weights.items():
        value = copy.graph.initializers[name]
        value.const_value = ir.tensor(dequantize(codes.codes, codes.params).astype(np.float32), name=name)
    return copy


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["Relu (n)", "Clip (n, zero, six)", "Identity (n)"])
@pytest.mark.parametrize("last", ["y = Conv (r, w2BIAS)", "y = Conv <group = 4> (r, w2BIAS)"])
def test_the_mean_error_is_zero_where_the_assumption_holds(activation: str, last: str, bias: bool) -> None:
    model, data = network(activation, last, bias), normal(9, 4000, 8, 4, 4)
    [expected] = outputs(model, {"x": data})
    on = prepared(model, data)
    run(model, *STEPS[:-1], on=on)
    [rounded] = outputs(with_rounded_weights(model, on), {"x": data})
    first = next(n for n in model.graph if n.op_type == "Conv")
    # only the last layer is looked at: the first reads inputs that no BatchNormalization made
    on.plan.weights = {k: v for k, v in on.plan.weights.items() if k[1] != first.name}
    [alone] = outputs(with_rounded_weights(model, on), {"x": data})
    assert CompensateBiasAnalytic().run(model, on)
    [compensated] = outputs(with_rounded_weights(model, on), {"x": data})
    before, after = (np.abs((got - expected).mean((0, 2, 3))) for got in (alone, compensated))
    assert rounded.shape == expected.shape
    noise = (alone - expected).std((0, 2, 3)) / np.sqrt(data[:, 0].size)
    assert (after < 5 * noise).all()
    assert before.max() > 4 * after.max()
    node = list(model.graph)[-1]
    assert len(node.inputs) == 3
    assert constant(node.inputs[2]) is not None


def test_channel_means_of_the_samples_serve_where_nothing_is_recorded() -> None:
    weights = {"w": normal(4, 8, 5), "b": normal(5, 5)}
    text = f"{HEAD} g (float[N,8] x) => (float[N,5] y) {{ m = MatMul (x, w) y = Add (m, b) }}"
    model, data = model_of(text, weights), np.abs(normal(6, 64, 8)) + np.arange(8, dtype=np.float32)
    [expected] = outputs(model, {"x": data})
    on = prepared(model, data)
    run(model, *STEPS, on=on)
    [compensated] = outputs(with_rounded_weights(model, on), {"x": data})
    np.testing.assert_allclose((compensated - expected).mean(axis=0), 0, atol=1e-5)


def test_golden() -> None:
    model = network("Relu (n)", "y = Conv (r, w2BIAS)", bias=False)
    on = prepared(model, normal(9, 64, 8, 4, 4))
    run(model, *STEPS[:-1], on=on)
    before = print_model(model)
    assert CompensateBiasAnalytic().run(model, on)
    assert_golden("passes/compensate-bias-analytic", f"# before\n{before}\n# after\n{print_model(model)}")


def test_layers_of_whose_input_nothing_is_known_are_left_alone() -> None:
    model = model_of(f"{HEAD} g (float[N,8] x) => (float[N,5] y) {{ y = MatMul (x, w) }}", {"w": normal(4, 8, 5)})
    on = prepared(model, normal(6, 64, 8))
    run(model, *STEPS[:-1], on=on)
    on.statistics.vectors = {k: v for k, v in on.statistics.vectors.items() if "channels" not in k}
    assert not CompensateBiasAnalytic().run(model, on)
    assert any("1 layers were not compensated" in n for n in on.notices)
