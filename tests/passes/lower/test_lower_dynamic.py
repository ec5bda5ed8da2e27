"""Linear layers that quantize their own input, as DynamicQuantizeMatMul."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.compiler.formats import UINT8
from qcompile.compiler.params import dequantize, params_from_range, quantize
from qcompile.compiler.specs import QuantSpec
from qcompile.frontends.builtin_recipes import find_recipe
from tests.passes.int8 import Array, Lowered, check, head, int8, normal

DYNAMIC = find_recipe("int8-dynamic").with_overrides(["place-dynamic.per-token=false"])


def dynamic(text: str, weights: dict[str, Array], samples: list[dict[str, Array]], *options: str) -> Lowered:
    return int8(text, weights, samples, *options, recipe=DYNAMIC)


@pytest.mark.parametrize("shape", [(16,), (6, 16), (2, 3, 16)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_any_rank_with_and_without_bias(shape: tuple[int, ...], bias: bool) -> None:
    dims = ",".join(map(str, shape))
    out = ",".join(map(str, (*shape[:-1], 8)))
    body = "{ m = MatMul (x, w) y = Add (m, b) }" if bias else "{ y = MatMul (x, w) }"
    weights = {"w": normal(16, 8)} | ({"b": normal(8)} if bias else {})
    result = dynamic(f"{head()} g (float[{dims}] x) => (float[{out}] y) {body}", weights, [{"x": normal(*shape)}])
    assert [n.op_type for n in result.model.graph] == ["DynamicQuantizeMatMul"]
    assert result.forms == {"y": "DYNAMIC"}
    check(result, least=30)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [(8,), (1, 8), (1,), ()], ids=str)
def test_gemm(transposed: int, bias: tuple[int, ...]) -> None:
    text = head() + f"g (float[6,16] x) => (float[6,8] y) {{ y = Gemm <transB = {transposed}> (x, w, b) }}"
    weight = normal(8, 16) if transposed else normal(16, 8)
    result = dynamic(text, {"w": weight, "b": normal(*bias)}, [{"x": normal(6, 16)}])
    check(result, least=30)


def test_the_product_is_that_of_the_codes() -> None:
    text = head() + "g (float[6,16] x) => (float[6,8] y) { m = MatMul (x, w) y = Add (m, b) }"
    x, b = normal(6, 16), normal(8)
    result = dynamic(text, {"w": normal(16, 8), "b": b}, [{"x": x}])
    params = params_from_range(QuantSpec(UINT8), x.min(), x.max())
    weight = result.plan.weights["w", "MatMul_0"]
    expected = dequantize(quantize(x, params), params) @ dequantize(weight.codes, weight.params) + b
    np.testing.assert_allclose(result.plain["y"], expected, rtol=1e-5, atol=1e-5)


def test_layers_in_branches() -> None:
    text = (
        head()
        + """g (float[6,16] x, bool c) => (float[6,8] y) {
      y = If (c) <
        then_branch = t () => (float[6,8] p) { m = MatMul (x, w) p = Add (m, b) },
        else_branch = e () => (float[6,8] q) { q = MatMul (x, w) }
      >
    }"""
    )
    result = dynamic(text, {"w": normal(16, 8), "b": normal(8)}, [{"x": normal(6, 16), "c": np.array(True)}])
    assert result.kernels().count("DynamicQuantizeMatMul") == 2
    check(result, least=30)


def test_what_is_small_stays_float_on_the_real_table() -> None:
    from qcompile.compiler.targets import target_named

    text = head() + "g (float[1,4] x) => (float[1,4] y) { y = MatMul (x, w) }"
    result = int8(text, {"w": normal(4, 4)}, [{"x": normal(1, 4)}], recipe=DYNAMIC, target=target_named("cpu"))
    assert "longer than float" in result.plan.kept_float["MatMul_0"]
    assert [n.op_type for n in result.model.graph] == ["MatMul"]
