from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from qcompile.errors import ModelError, QCompileError
from qcompile.runtime.torch_graph import TorchGraph
from tests.passes.harness import Arrays, model_of, outputs
from tests.zoo import MODELS

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def run(model: ir.Model, feeds: Arrays, **options: Any) -> list[np.ndarray[Any, Any]]:
    with torch.no_grad():
        got = TorchGraph(model)({k: torch.from_numpy(np.array(v)) for k, v in feeds.items()}, **options)
    return [t.numpy() for t in got.values()]


WEIGHTS: Arrays = {
    "w": normal(4, 3, 3, 3),
    "b": normal(4),
    "dw": normal(3, 1, 3, 3),
    "up": normal(3, 2, 3, 3),
    "m": normal(6, 5),
    "bias": normal(5),
    "v": np.abs(normal(3)) + np.float32(0.1),
    "g": normal(3),
    "half": np.float32(0.5),
    "low": np.float32(-0.5),
    "slope": normal(3, 1, 1),
    "wide": normal(6),
    "axes": np.array([2, 3]),
    "one": np.array([1]),
    "minus": np.array([-1]),
    "five": np.array([5]),
    "far": np.array([-1000]),
    "pads": np.array([0, 0, 1, 2, 0, 0, 3, 0]),
    "cut": np.array([0, 0, -1, 0, 0, 0, 0, -2]),
    "twice": np.array([1, 1, 2, 2], np.float32),
    "flat": np.array([0, -1]),
    "many": np.array([2, 3, 7, 6]),
    "rows": np.array([[2, -1], [0, 1]]),
    "parts": np.array([1, 2]),
    "none": np.array([], np.float32),
    "tiles": np.array([1, 2, 1, 1]),
    "positive": np.float32(2),
    "eight": np.array([5, 1, 1, 4, 2]),
}

LAYERS = [
    "y = Conv <pads = [1, 0, 2, 1], strides = [2, 1]> (x, w, b)",
    "y = Conv <strides = [1, 2], auto_pad = \"SAME_UPPER\"> (x, w)",
    "y = Conv <auto_pad = \"SAME_LOWER\", strides = [2, 2]> (x, w)",
    "y = Conv <group = 3> (x, dw)",
    "y = ConvTranspose <strides = [2, 2], pads = [1, 0, 0, 2], output_padding = [1, 0]> (x, up)",
    "y = MaxPool <kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 1, 1]> (x)",
    "y = AveragePool <kernel_shape = [3, 2], pads = [1, 1, 0, 0]> (x)",
    "y = AveragePool <kernel_shape = [3, 2], pads = [1, 1, 0, 0], count_include_pad = 1> (x)",
    "y = GlobalAveragePool (x)",
    "y = GlobalMaxPool (x)",
    "y = BatchNormalization <epsilon = 0.01> (x, g, g, g, v)",
    "y = InstanceNormalization (x, v, g)",
    "y = LayerNormalization <axis = -1> (x, wide, wide)",
    "y = Clip (x, low, half)",
    "y = Clip (x, , half)",
    "y = PRelu (x, slope)",
    "y = LeakyRelu <alpha = 0.2> (x)",
    "y = Elu (x)",
    "y = HardSigmoid <alpha = 0.3> (x)",
    "y = HardSwish (x)",
    "y = Gelu <approximate = \"tanh\"> (x)",
    "y = Softplus (x)",
    "y = Mish (x)",
    "y = Softmax <axis = 1> (x)",
    "y = LogSoftmax (x)",
    "a = Abs (x) y = Pow (a, half)",
    "y = Max (x, half, low)",
    "y = Sum (x, half)",
    "y = MatMul (x, m)",
    "f = Reshape (x, flat) z = Slice (f, minus, far, one, minus) y = Identity (z)",
    "s = Slice (x, one, five, minus) y = Exp (s)",
    "y = Slice (x, minus, far, one, minus)",
    "r = GlobalAveragePool (x) f = Flatten (r) y = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (f, tall, bias)",
    "y = ReduceMean <keepdims = 0> (x, axes)",
    "y = ReduceL2 (x, minus)",
    "y = ReduceSum <keepdims = 0> (x)",
    "y = ReduceMax (x, one)",
    "y = ReduceSum <noop_with_empty_axes = 1> (x)",
    "y = Transpose <perm = [0, 2, 3, 1]> (x)",
    "y = Concat <axis = -1> (x, x)",
    "y, z = Split <axis = 1> (x, parts)",
    "y, z = Split <axis = 2, num_outputs = 2> (x)",
    "u = Unsqueeze (x, one) y = Squeeze (u, one)",
    "y = Gather <axis = 1> (x, rows)",
    "s = Shape <start = 1> (x) c = ConstantOfShape (s) y = Add (x, c)",
    "r = ReduceMean (x, axes) y = Expand (r, eight)",
    "y = Tile (x, tiles)",
    "y = Pad (x, pads, half)",
    "y = Pad (x, cut)",
    "y = Pad <mode = \"reflect\"> (x, pads)",
    "y = Pad <mode = \"edge\"> (x, pads)",
    "y = Resize <mode = \"nearest\", coordinate_transformation_mode = \"asymmetric\", nearest_mode = \"floor\">"
    " (x, , twice)",
    "y = Resize <mode = \"linear\"> (x, , twice)",
    "y = Resize <mode = \"linear\", coordinate_transformation_mode = \"align_corners\"> (x, , twice)",
    "p = Greater (x, half) n = Neg (x) y = Where (p, x, n)",
    "c = Cast <to = 6> (x) d = Cast <to = 1> (c) y = Div (d, positive)",
    "i = Cast <to = 7> (x) y = Div (i, five)",
    "y = Round (x)",
]  # fmt: skip


@pytest.mark.parametrize("layers", LAYERS)
def test_every_operator_agrees_with_onnx_runtime(layers: str) -> None:
    image = RNG.uniform(-3, 3, (2, 3, 7, 6)).astype(np.float32)
    kind = "int64" if "i = Cast" in layers else "float"
    used = {n: a for n, a in (WEIGHTS | {"tall": normal(5, 3)}).items() if f"{n}," in layers or f"{n})" in layers}
    proto_text = f"{HEAD} g (float[N,3,7,6] x) => ({kind}[A] y) {{ {layers} }}"
    import onnx

    proto = onnx.parser.parse_model(proto_text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in used.items())
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = ir.from_proto(proto)
    for expected, got in zip(outputs(model, {"x": image}), run(model, {"x": image}), strict=True):
        assert expected.shape == got.shape
        assert expected.dtype == got.dtype
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.models
@pytest.mark.parametrize("name", ["efficientnet-lite0", "all-minilm-l6-v2", "ppocrv4-rec", "ppocrv4-det"])
def test_models_agree_with_onnx_runtime(name: str) -> None:
    chosen = MODELS[name]()
    sample = chosen.timing_sample()
    if name == "ppocrv4-det":
        sample = {"x": np.ascontiguousarray(sample["x"][:, :, :128, :160])}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(chosen.path(), options, providers=["CPUExecutionProvider"])
    [expected] = session.run(None, sample)
    [got] = run(ir.load(chosen.path()), dict(sample))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * max(np.abs(expected).max(), 1))


def test_gradients_reach_inputs_and_weights() -> None:
    model = model_of(
        f"{HEAD} g (float[1,3,7,6] x) => (float[1,4,5,4] y) {{ c = Conv (x, w, b) y = Sigmoid (c) }}",
        {k: WEIGHTS[k] for k in ("w", "b")},
    )
    graph = TorchGraph(model)
    image = torch.from_numpy(normal(1, 3, 7, 6)).double().requires_grad_()
    for name in graph.tensors:
        graph.tensors[name] = graph.tensors[name].double().requires_grad_()

    def loss(x: Any, w: Any) -> Any:
        graph.tensors["w"] = w
        return graph({"x": x})["y"].square().sum()

    assert torch.autograd.gradcheck(loss, (image, graph.tensors["w"]))


def test_inner_values_and_edits() -> None:
    model = model_of(
        f"{HEAD} g (float[2] x) => (float[2] y) {{ a = Neg (x) b = Relu (a) y = Exp (b) }}",
    )
    graph, x = TorchGraph(model), torch.tensor([-2.0, 3.0])
    assert graph({"x": x}, ["b", "x"])["b"].tolist() == [2.0, 0.0]
    doubled = graph({"x": x}, ["b"], edit=lambda name, value: 2 * value if name == "a" else value)
    assert doubled["b"].tolist() == [4.0, 0.0]
    assert graph.inputs == ["x"]
    assert graph.outputs == ["y"]


def test_what_has_no_torch_form_is_named() -> None:
    model = model_of(
        f"{HEAD} g (float[1,4,4] x) => (float y) {{ s = Det (x) t = NonZero (s) u = Cast <to = 1> (t) "
        "y = ReduceSum <keepdims = 0> (u) }"
    )
    with pytest.raises(ModelError, match="no torch form of Det, NonZero"):
        TorchGraph(model)


@pytest.mark.parametrize(
    "layer", ['Resize <mode = "cubic"> (x, , twice)', "MaxPool <kernel_shape = [2, 2], ceil_mode = 1> (x)"]
)
def test_what_an_operator_cannot_do_in_torch_is_said(layer: str) -> None:
    model = model_of(
        f"{HEAD} g (float[1,3,8,8] x) => (float[1,3,H,W] y) {{ y = {layer} }}", {"twice": WEIGHTS["twice"]}
    )
    with pytest.raises(ModelError, match="torch cannot run"):
        run(model, {"x": normal(1, 3, 8, 8)})


def test_without_torch_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    model = model_of(f"{HEAD} g (float[2] x) => (float[2] y) {{ y = Relu (x) }}")
    with pytest.raises(QCompileError, match="qcompile\\[torch\\]"):
        TorchGraph(model)
