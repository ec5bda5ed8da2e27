"""NF4 weights as MatMulBnb4: what the kernel computes, and double quantization that the runtime takes back at load."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.formats import FORMATS, Scales
from qcompile.compiler.specs import QuantSpec
from qcompile.compiler.targets.table import Lowering
from qcompile.passes.lower.lower_bnb4 import LowerBnb4
from tests.passes.int8 import Lowered, head, normal
from tests.passes.lower.weight_only import check_golden, restored, weight_only

BODIES = {
    "matmul": "{ y = MatMul (x, w) }",
    "matmul and bias": "{ m = MatMul (x, w) y = Add (m, b) }",
    "gemm": "{ y = Gemm <transB = 1> (x, w, b) }",
}
NF4 = FORMATS["nf4"]


def in_nf4(body: str, depth: int, scales: Scales, columns: int = 9) -> Lowered:
    shape = (columns, depth) if body == "gemm" else (depth, columns)
    text = head() + f"g (float[6,{depth}] x) => (float[6,{columns}] y) {BODIES[body]}"
    weights = {"w": normal(*shape)} | ({"b": normal(columns)} if "b" in BODIES[body].split("(")[-1] else {})
    spec, sample = QuantSpec(NF4, symmetric=True, scales=scales), {"x": normal(6, depth)}
    return weight_only(text, weights, sample, spec, 16, LowerBnb4(), lowering=Lowering.BNB4)


@pytest.mark.parametrize("scales", [Scales.FLOAT32, Scales.FLOAT16, Scales.DOUBLE])
@pytest.mark.parametrize("body", BODIES)
def test_the_kernel_computes_with_the_planned_values(body: str, scales: Scales) -> None:
    result = in_nf4(body, 48, scales)
    w = restored(result)
    exact = normal(6, 48) @ (w.T if body == "gemm" else w) + (0 if body == "matmul" else normal(9))
    np.testing.assert_allclose(result.optimized["y"], exact, rtol=0, atol=1e-4)
    assert set(result.kernels()) <= {"MatMulBnb4", "Add"}, "the scales are restored when the model loads"
    assert "MatMul_0_nf4" in [n.name for n in result.model.graph] or body == "gemm"


def test_double_quantization_of_many_blocks_leaves_an_eighth_of_a_bit() -> None:
    result = in_nf4("matmul", 1024, Scales.DOUBLE, columns=40)
    held = result.initializers()
    nf4 = held.pop("w_nf4")
    assert nf4.const_value is not None
    assert nf4.const_value.nbytes == 1024 * 40 // 2
    assert held["w_absmax_codes"].dtype is ir.DataType.INT8
    stored = sum(v.const_value.nbytes for v in held.values() if v.const_value is not None)
    assert stored * 8 / (1024 * 40) < 8 / 16 + 0.02, "8 bits for each block of 16, and a little"
    np.testing.assert_allclose(result.optimized["y"], normal(6, 1024) @ restored(result), rtol=0, atol=1e-3)


def test_golden() -> None:
    weight = np.arange(32 * 3, dtype=np.float32).reshape(32, 3) % 7 - 3
    text = head() + "g (float[6,32] x) => (float[6,3] y) { y = Gemm (x, w, b) }"
    spec = QuantSpec(NF4, symmetric=True, scales=Scales.DOUBLE)
    check_golden(text, {"w": weight, "b": np.ones(3, np.float32)}, spec, 16, LowerBnb4(), Lowering.BNB4)
