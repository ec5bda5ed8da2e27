from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from qcompile.compiler.printer import print_model, print_tensor
from qcompile.compiler.provenance import stamp_originals
from tests.golden import assert_golden
from tests.passes.harness import model_of

TEXT = """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
g (float[N,2] x, bool c) => (float[N,2] y, float[N,2] z) {
  k = Constant <value_floats = [1.0, 0.1]> ()
  h = Clip (x, , k)
  z = com.microsoft.Gelu (h)
  y = If (c) <
    then_branch = t () => (float[N,2] p) { p = Elu <alpha = 0.30000001> (h) },
    else_branch = e () => (float[N,2] q) { q = MatMul (h, w) }
  >
}"""


def test_golden() -> None:
    model = model_of(TEXT, {"w": np.arange(4, dtype=np.float32).reshape(2, 2), "v": np.arange(9.0)})
    stamp_originals(model)
    assert_golden("printer", print_model(model, provenance=True))


def test_order_of_attributes_and_initializers_does_not_show() -> None:
    weights = {"w": np.ones((2, 2), np.float32), "a": np.float32([1])}
    one, other = model_of(TEXT, weights), model_of(TEXT, dict(reversed(weights.items())))
    assert print_model(one) == print_model(other)


def test_every_difference_shows() -> None:
    weights = {"w": np.ones((2, 2), np.float32)}
    texts = {print_model(model_of(TEXT, weights))}
    for old, new in (
        ("0.30000001", "0.3001"),
        ("Gelu (h)", "Gelu (x)"),
        ("float[N,2] x", "float[M,2] x"),
        ("p = Elu", "p = Selu"),
    ):
        texts.add(print_model(model_of(TEXT.replace(old, new), weights)))
    assert len(texts) == 5


def test_large_tensors_are_told_apart_by_a_digest() -> None:
    a = np.zeros(100, np.float32)
    b = a.copy()
    b[50] = np.nextafter(np.float32(0), np.float32(1))
    assert print_tensor(ir.tensor(a)).startswith("f32[100] #")
    assert print_tensor(ir.tensor(a)) != print_tensor(ir.tensor(b))


def test_sub_byte_and_string_tensors() -> None:
    assert print_tensor(ir.tensor(np.array([-8, 7], ml_dtypes.int4))) == "i4[2] [-8, 7]"
    assert print_tensor(ir.tensor(np.array([0.5], ml_dtypes.float8_e4m3fn))) == "f8e4m3fn[1] [0.5]"
    assert print_tensor(ir.tensor(["a", "b"])) == "s[2] ['a', 'b']"
