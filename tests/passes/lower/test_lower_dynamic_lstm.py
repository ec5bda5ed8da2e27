"""LSTM whose input and state are quantized as it runs, against the float LSTM."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompile.compiler.params import dequantize
from qcompile.frontends.builtin_recipes import find_recipe
from tests.passes.int8 import Array, check, compiled, normal

INPUT, HIDDEN, STEPS = 12, 8, 10


def lstm(direction: str, batch: int, *optional: str, outputs: str = "YHC", **attributes: Any) -> onnx.ModelProto:
    """An LSTM with some of its optional inputs: bias, lengths, state, peepholes."""
    directions = 2 if direction == "bidirectional" else 1
    names = {"bias": ["b"], "lengths": ["lengths"], "state": ["h", "c"], "peepholes": ["p"]}
    given = {name for key in optional for name in names[key]}
    weights = {
        "w": normal(directions, 4 * HIDDEN, INPUT) / np.sqrt(INPUT),
        "r": normal(directions, 4 * HIDDEN, HIDDEN) / np.sqrt(HIDDEN),
        "b": normal(directions, 8 * HIDDEN) / 10,
        "p": normal(directions, 3 * HIDDEN) / 10,
    }
    shape = [directions, batch, HIDDEN]
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, batch, INPUT]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, [batch]),
        *(helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "hc"),
    ]
    order = ["x", "w", "r", *(n if n in given else "" for n in ("b", "lengths", "h", "c", "p"))]
    written = {"Y": "Y", "H": "Yh", "C": "Yc"}
    node = helper.make_node(
        "LSTM",
        order,
        [name if key in outputs else "" for key, name in written.items()],
        direction=direction,
        hidden_size=HIDDEN,
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [v for v in values if v.name in order],
        [helper.make_tensor_value_info(written[key], TensorProto.FLOAT, None) for key in outputs],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items() if n in order],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def sample(model: onnx.ModelProto, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for value in model.graph.input:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if value.name == "lengths":
            found[value.name] = rng.integers(1, STEPS + 1, shape).astype(np.int32)
        else:
            found[value.name] = rng.standard_normal(shape).astype(np.float32)
    return found


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    "optional", [(), ("bias",), ("bias", "state"), ("bias", "lengths"), ("bias", "lengths", "state", "peepholes")]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_close_to_float(direction: str, optional: tuple[str, ...], batch: int) -> None:
    model = lstm(direction, batch, *optional)
    result = compiled(model, [sample(model)], recipe=find_recipe("int8-dynamic"))
    [node] = result.model.graph
    assert node.op_type == "DynamicQuantizeLSTM"
    check(result, least=30)


@pytest.mark.parametrize("outputs", ["Y", "H", "HC", "YC"])
def test_outputs_that_nobody_asked_for(outputs: str) -> None:
    model = lstm("forward", 2, "bias", outputs=outputs)
    result = compiled(model, [sample(model)], recipe=find_recipe("int8-dynamic"))
    check(result, least=30)


@pytest.mark.parametrize("attributes", [{"clip": 0.5}, {"activations": ["HardSigmoid", "Tanh", "Tanh"]}], ids=str)
def test_attributes_are_kept(attributes: dict[str, Any]) -> None:
    model = lstm("forward", 2, "bias", **attributes)
    check(compiled(model, [sample(model)], recipe=find_recipe("int8-dynamic")), least=30)


def test_every_row_of_a_direction_has_its_own_scale() -> None:
    model = lstm("bidirectional", 1, "bias")
    result = compiled(model, [sample(model)], recipe=find_recipe("int8-dynamic"))
    float_weights = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    for name in "wr":
        quantized = result.plan.weights[name, "LSTM_0"]
        assert quantized.params.scale.shape == (2, 4 * HIDDEN, 1)
        exact = float_weights[name]
        np.testing.assert_allclose(quantized.params.scale[..., 0], np.abs(exact).max(axis=2) / 127, rtol=1e-6)
        error = np.abs(dequantize(quantized.codes, quantized.params) - exact)
        assert (error <= quantized.params.scale * 0.5001).all()


def test_noise_does_not_gather_along_a_long_sequence() -> None:
    model = lstm("forward", 1, "bias")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "steps"
    long = {"x": np.random.default_rng(0).standard_normal((600, 1, INPUT)).astype(np.float32)}
    result = compiled(model, [long], recipe=find_recipe("int8-dynamic"))
    noise = np.square(result.plain["Y"] - result.expected["Y"]).reshape(600, -1).mean(axis=1)
    assert noise[300:].mean() < 2 * noise[10:100].mean()
    assert result.sqnr("Y") > 30
