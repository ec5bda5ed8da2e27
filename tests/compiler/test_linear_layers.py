"""Linear layers as matrices, written back into the layout of the model, and why others are none."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.linear_layers import LinearLayer, linear_layers
from tests.passes.harness import model_of, outputs
from tests.passes.int8 import head, normal

TEXT = (
    head()
    + """g (float[2,4,6,6] x, float[12,3] z) => (float[2,6,4,4] c, float[2,4,6,6] d, float[3,5] y, float[3,5] t,
                                             float[3,5] u, float[3,3] v, float[3,4] a, bool b, float[3,4] m) {
    c = Conv <group = 2> (x, wc, bc)
    d = Conv <group = 4, pads = [1, 1, 1, 1]> (x, wd)
    zt = Transpose <perm = [1, 0]> (z)
    y0 = MatMul (zt, wm) y = Add (by, y0)
    t = Gemm <transB = 1> (zt, wt, bt)
    u = Gemm <transA = 1> (z, wu)
    v = MatMul (zt, z)
    a = MatMul (zt, shared) m = MatMul (zt, shared)
    b = Constant <value = bool {1}> () }"""
)
WEIGHTS = {
    "wc": normal(6, 2, 3, 3), "bc": normal(6), "wd": normal(4, 1, 3, 3), "wm": normal(12, 5), "by": normal(5),
    "wt": normal(5, 12), "bt": normal(5), "wu": normal(12, 5), "shared": normal(12, 4),
}  # fmt: skip
SHAPES = {"wc": (2, 3, 18), "wd": (4, 1, 9), "wm": (1, 5, 12), "wt": (1, 5, 12)}


def found() -> tuple[ir.Model, dict[str, LinearLayer], dict[str, str]]:
    model = model_of(TEXT, dict(WEIGHTS))
    for node in model.graph:
        node.name = node.outputs[0].name
    layers, left_out = linear_layers(model)
    return model, {str(layer.weight.name): layer for layer in layers}, left_out


def test_layers_and_the_reasons_for_others() -> None:
    _, layers, left_out = found()
    assert {name: layer.shape for name, layer in layers.items()} == SHAPES
    assert {name: layer.matrix().shape for name, layer in layers.items()} == SHAPES
    assert left_out == {
        "u": "it reads its input transposed",
        "a": "its weight is that of m too",
        "m": "its weight is that of a too",
    }
    biases = {name: layer.bias.name for name, layer in layers.items() if layer.bias is not None}
    assert biases == {"wc": "bc", "wm": "by", "wt": "bt"}


def test_what_is_written_is_what_is_computed() -> None:
    model, layers, _ = found()
    feeds = {"x": normal(2, 4, 6, 6, seed=1), "z": normal(12, 3, seed=2)}
    before = outputs(model, feeds)
    for layer in layers.values():
        layer.write(layer.matrix())
    for a, b in zip(before, outputs(model, feeds), strict=True):
        np.testing.assert_array_equal(a, b)
    for layer in layers.values():
        layer.write(2 * layer.matrix())
    after = outputs(model, feeds)
    np.testing.assert_allclose(after[1], 2 * before[1], rtol=1e-5)
    np.testing.assert_allclose(after[2] - WEIGHTS["by"], 2 * (before[2] - WEIGHTS["by"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_weights_keep_their_type(dtype: ir.DataType) -> None:
    _, layers, _ = found()
    layer = layers["wm"]
    layer.weight.const_value = ir.tensor(WEIGHTS["wm"].astype(dtype.numpy()), dtype=dtype, name="wm")
    layer.weight.type = ir.TensorType(dtype)
    halves = layer.matrix()
    assert halves.dtype == np.float32
    layer.write(halves)
    assert layer.weight.const_value.dtype == dtype
    np.testing.assert_array_equal(layer.matrix(), halves)


def test_products_that_are_scaled_or_shifted_otherwise_are_left_alone() -> None:
    text = (
        head()
        + """g (float[3,12] x, float[5] c) => (float[3,5] a, float[3,5] b, float[3,5] d, float[3,5] e) {
        a = Gemm <alpha = 2.0> (x, wa, row)  b = Gemm (x, wb, table)  d = Gemm (x, wd, c)  e = Gemm (x, we, one) }"""
    )
    weights = {f"w{n}": normal(12, 5) for n in "abde"}
    others = {"row": normal(5), "table": normal(3, 5), "one": normal(1, 1)}
    model = model_of(text, weights | others)
    for node in model.graph:
        node.name = node.outputs[0].name
    layers, left_out = linear_layers(model)
    assert not layers
    assert list(left_out.values()) == [
        "it scales its product",
        *3 * ["what it adds is no constant with a number for each output"],
    ]
