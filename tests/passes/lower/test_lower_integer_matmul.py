"""Linear layers among float operators, as MatMulIntegerToFloat."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.int8 import Array, check, head, int8, normal

W, V, B = normal(16, 8, seed=1), normal(16, 8, seed=2), normal(8, seed=3)


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("shape", [(16,), (6, 16), (2, 6, 16), (2, 3, 4, 16)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_any_rank_with_and_without_bias(shape: tuple[int, ...], bias: bool, opset: int) -> None:
    dims = ",".join(map(str, shape))
    out = ",".join(map(str, (*shape[:-1], 8)))
    body = "{ m = MatMul (x, w) y = Add (m, b) }" if bias else "{ y = MatMul (x, w) }"
    text = f"{head(opset)} g (float[{dims}] x) => (float[{out}] y) {body}"
    result = int8(text, {"w": W} | ({"b": B} if bias else {}), [{"x": normal(*shape)}])
    assert [n.op_type for n in result.model.graph] == ["QuantizeLinear", "MatMulIntegerToFloat"]
    product = result.model.graph.node(1)
    names = ["x_quantized", "w_quantized", "x_scale", "w_scale", "x_zero_point", "w_zero_point"]
    assert [v.name if v else None for v in product.inputs] == [*names, "b" if bias else None]
    assert product.name == "MatMul_0_int8"
    check(result, least=30)


def test_the_product_is_exact_on_codes() -> None:
    """Y = s_x s_w (X_q - z_x) W_q + b, to float32's rounding."""
    text = head() + "g (float[6,16] x) => (float[6,8] y) { m = MatMul (x, w) y = Add (m, b) }"
    x = normal(6, 16)
    result = int8(text, {"w": W, "b": B}, [{"x": x}])
    params, weight = result.plan.tensors["x"], result.plan.weights["w", "MatMul_0"]
    codes = np.clip(np.rint(x / params.scale) + params.zero_point, 0, 255) - params.zero_point
    expected: Array = codes @ weight.codes * (params.scale * weight.params.scale) + B
    np.testing.assert_allclose(result.plain["y"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.optimized["y"], expected, rtol=1e-5, atol=1e-5)


def test_layers_that_read_the_same_share_its_codes() -> None:
    body = "{ p = MatMul (x, w) q = MatMul (x, v) t = Tanh (q) y = Mul (p, t) }"
    text = head() + "g (float[6,16] x) => (float[6,8] y) " + body
    result = int8(text, {"w": W, "v": V}, [{"x": normal(6, 16)}], "place-int8.keep-float=[Mul_3]")
    assert [n.op_type for n in result.model.graph].count("QuantizeLinear") == 1
    check(result)


def test_a_layer_behind_codes_reads_them_directly() -> None:
    text = head() + "g (float[6,16] x) => (float[6,8] y) { h = Gemm (x, u) y = MatMul (h, w) }"
    result = int8(text, {"u": normal(16, 16), "w": W}, [{"x": normal(6, 16)}])
    product = next(n for n in result.model.graph if n.op_type == "MatMulIntegerToFloat")
    assert product.inputs[0] is not None
    assert product.inputs[0].name == "h_quantized"
    assert "h_dequantized" not in [v.name for n in result.model.graph for v in n.outputs], "nobody reads it"
    check(result)


@pytest.mark.parametrize("taken", [True, False])
def test_layers_in_both_branches_and_outside(taken: bool) -> None:
    text = (
        head()
        + """g (float[6,16] x, bool c) => (float[6,8] y, float[6,8] z) {
      z = MatMul (x, w)
      y = If (c) <
        then_branch = t () => (float[6,8] p) { m = MatMul (x, v) p = Add (m, b) },
        else_branch = e () => (float[6,8] q) { q = MatMul (x, w) }
      >
    }"""
    )
    samples = [{"x": normal(6, 16, seed=i), "c": np.array(taken == (i == 0))} for i in range(2)]
    result = int8(text, {"w": W, "v": V, "b": B}, samples)
    assert result.forms == dict.fromkeys("zpq", "INPUTS")
    assert result.kernels().count("MatMulIntegerToFloat") == 3
    check(result)


def test_a_stack_of_matrices_stays_float() -> None:
    text = head() + "g (float[2,6,16] x) => (float[2,6,8] y) { y = MatMul (x, w) }"
    result = int8(text, {"w": normal(2, 16, 8)}, [{"x": normal(2, 6, 16)}])
    assert result.plan.kept_float == {
        "MatMul_0": "its weight is not one matrix: no kernel reads codes of a stack of them, as of experts"
    }
