"""Embedding tables as int8 rows."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.compiler.params import dequantize
from tests.passes.int8 import check, head, int8, normal

TABLE = normal(50, 16) * np.float32(10.0) ** np.linspace(-3, 3, 50, dtype=np.float32)[:, None]


@pytest.mark.parametrize("shape", [(), (6,), (2, 5), (1, 2, 3)], ids=str)
def test_rows_are_dequantized_with_their_own_scale(shape: tuple[int, ...]) -> None:
    dims, out = (",".join(map(str, s)) for s in (shape, (*shape, 16)))
    ids = np.random.default_rng(0).integers(0, 50, shape)
    kind = f"int64[{dims}]" if shape else "int64"
    result = int8(f"{head()} g ({kind} i) => (float[{out}] y) {{ y = Gather (t, i) }}", {"t": TABLE}, [{"i": ids}])
    [quantized] = result.plan.weights.values()
    np.testing.assert_allclose(quantized.params.scale, np.abs(TABLE).max(axis=1) / 127, rtol=1e-6)
    rows = dequantize(quantized.codes, quantized.params)[ids]
    np.testing.assert_array_equal(result.plain["y"], rows)
    np.testing.assert_array_equal(result.optimized["y"], rows)
    assert (np.abs(rows - TABLE[ids]) <= np.abs(TABLE[ids]).max(axis=-1, keepdims=True) / 253).all()
    check(result, least=35)


def test_negative_indices_count_from_the_end() -> None:
    text = head() + "g (int64[2] i) => (float[2,16] y) { y = Gather (t, i) }"
    result = int8(text, {"t": TABLE}, [{"i": np.int64([-1, -50])}])
    np.testing.assert_array_equal(result.plain["y"].argmax(-1), TABLE[[-1, 0]].argmax(-1))
    check(result, least=35)


def test_looked_up_rows_become_codes_again_under_their_own_name() -> None:
    text = head() + "g (int64[6] i) => (float[6,8] y) { e = Gather (t, i) h = Gemm (e, w) y = Tanh (h) }"
    result = int8(text, {"t": normal(50, 16), "w": normal(16, 8)}, [{"i": np.arange(6)}])
    assert result.forms == {"e": "ROWS", "h": "INPUTS"}
    by_output = {str(n.outputs[0].name): n.op_type for n in result.model.graph}
    assert by_output["e_rows"] == "Gather"
    assert by_output["e_quantized"] == "QuantizeLinear"
    assert by_output["e"] == "Mul"
    check(result)


def test_a_table_that_is_also_the_last_layer_keeps_both_codes() -> None:
    """Tied embeddings: rows have scales along axis 0 for the look-up, columns along axis 1 for the product."""
    text = head() + "g (int64[16] i) => (float[16,16] y) { e = Gather (t, i) m = MatMul (e, t) y = Tanh (m) }"
    result = int8(text, {"t": TABLE[:16]}, [{"i": np.arange(16)}])
    axes = {str(q.params.spec.granularity) for q in result.plan.weights.values()}
    assert axes == {"PerChannel(axis=0)", "PerChannel(axis=1)"}
    assert {"t_quantized", "t_MatMul_1_quantized"} <= set(result.initializers())
    check(result, least=20)


def test_looking_up_columns_stays_float() -> None:
    text = head() + "g (int64[3] i) => (float[50,3] y) { y = Gather <axis = 1> (t, i) }"
    result = int8(text, {"t": TABLE}, [{"i": np.int64([0, 3, 5])}])
    assert result.plan.kept_float == {"Gather_0": "it does not look up rows (axis 0)"}
