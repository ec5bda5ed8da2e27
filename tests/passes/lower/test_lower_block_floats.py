"""FP8 and NVFP4 weights as operators of the CUDA provider: what is stored, and the Casts around them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.formats import FORMATS
from qcompile.compiler.graph import constant
from qcompile.compiler.passes import Pass
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.plan import Form
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.targets import target_named
from qcompile.compiler.targets.table import Lowering
from qcompile.passes.lower.lower_block_floats import LowerBlockFloats
from qcompile.passes.lower.lower_qdq import LowerQdq
from qcompile.passes.lower.precision import Precision
from tests.passes.harness import context, model_of
from tests.passes.int8 import Array, head, normal
from tests.passes.lower.weight_only import check_golden, placed

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
CUDA = target_named("cuda")
FP8, FP4 = "MatMulBlockQuantizedFp8Weight", "MatMulBlockQuantizedFp4Weight"
TEXT = head(21) + (
    "g (float[6,64] x) => (float[6,10] y, float[6,10] z) "
    "{ m = MatMul (x, w) y = Add (m, b) z = Gemm <transB = 1> (x, v) }"
)
WEIGHTS = {"w": normal(64, 10), "b": normal(10), "v": normal(10, 64)}


def lowered(name: str, lowering: Lowering, *more: Pass) -> ir.Model:
    model, block = model_of(TEXT, WEIGHTS), FORMATS[name].block or 32
    steps = placed(QuantSpec(FORMATS[name], symmetric=True), block, lowering, Form.WEIGHTS)
    on = replace(context(CUDA), held_out=[{"x": normal(6, 64)}])
    run_pipeline([*steps, LowerBlockFloats(), LowerQdq(), *more], model, on)
    return model


def weights_in(product: ir.Node) -> Array:
    """The weight [K, N] as the operator's specification reads its inputs."""
    codes, scale = (np.asarray(constant(v)) for v in product.inputs[1:3])
    size = product.attributes.get_int("block_size")
    if product.op_type == FP8:
        return (codes.astype(np.float32) * np.repeat(scale, size, 1)).T
    numbers = E2M1[np.stack([codes & 15, codes >> 4], -1)].reshape(len(codes), -1)
    scale = scale.view(FORMATS["fp8-e4m3"].dtype.numpy()).astype(np.float32)
    return (numbers * np.repeat(scale, size, 1) * np.asarray(constant(product.inputs[3]))).T


@pytest.mark.parametrize(
    ("name", "lowering", "op_type", "close"),
    [("fp8-e4m3", Lowering.BLOCK_FP8, FP8, 2**-4), ("nvfp4", Lowering.BLOCK_FP4, FP4, 0.3)],
)
def test_the_operator_reads_the_weight(name: str, lowering: Lowering, op_type: str, close: float) -> None:
    model = lowered(name, lowering)
    products = [n for n in model.graph if n.op_type == op_type]
    assert [n.name for n in products] == [f"MatMul_0_{name}", f"Gemm_2_{name}"]
    for product, weight in zip(products, (WEIGHTS["w"], WEIGHTS["v"].T), strict=True):
        assert np.abs(weights_in(product) - weight).max() < close * np.abs(weight).max()
    bias = constant(products[0].inputs[-1])
    assert bias is not None
    np.testing.assert_array_equal(bias, WEIGHTS["b"].astype(np.float16))
    assert sum(n.op_type == "Cast" for n in model.graph) == 3, "the input once, each output once"
    assert [(v.name, v.dtype) for v in model.graph.outputs] == [("y", ir.DataType.FLOAT), ("z", ir.DataType.FLOAT)]


def test_casts_go_where_the_graph_is_half() -> None:
    text = head(21) + "g (float[6,64] x) => (float[6,10] y) { a = Mul (x, g) m = MatMul (a, w) y = Softmax (m) }"
    model = model_of(text, {"w": normal(64, 10), "g": normal(64)})
    steps = placed(QuantSpec(FORMATS["nvfp4"]), 16, Lowering.BLOCK_FP4, Form.WEIGHTS)
    on = replace(context(CUDA), held_out=[])
    run_pipeline([*steps, LowerBlockFloats(), LowerQdq(), Precision()], model, on)
    assert [n.op_type for n in model.graph] == ["Cast", "Mul", FP4, "Softmax", "Cast"]


def test_golden() -> None:
    weights = {"w": np.arange(32 * 3, dtype=np.float32).reshape(32, 3) % 7 - 3, "b": np.ones(3, np.float32)}
    text = head(21) + "g (float[6,32] x) => (float[6,3] y) { y = Gemm (x, w, b) }"
    check_golden(text, weights, QuantSpec(FORMATS["nvfp4"]), 16, LowerBlockFloats(), Lowering.BLOCK_FP4)
