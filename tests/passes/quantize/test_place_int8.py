"""Placement on graphs: which operations may compute on codes, with which scales, and the reasons of the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qcompile.compiler.plan import Form
from qcompile.compiler.targets import target_named
from tests.passes.int8 import check, head, int8, normal

POINT = normal(8, 8, 1, 1, seed=2)
IMAGES = head() + "g (float[1,8,6,6] x) => (float[1,8,6,6] y) "
CHAIN = IMAGES + "{ c = Conv (x, w) s = Add (c, x) d = Conv (s, v) y = Softmax (d) }"
WEIGHTS = {"w": POINT, "v": normal(8, 8, 1, 1, seed=9)}
SAMPLES = [{"x": normal(1, 8, 6, 6, seed=i)} for i in range(3)]


def test_scales_come_from_the_range_over_all_samples() -> None:
    plan = int8(CHAIN, WEIGHTS, SAMPLES).plan
    low, high = (min(s["x"].min() for s in SAMPLES), max(s["x"].max() for s in SAMPLES))
    scale = (high - low) / 255
    assert plan.tensors["x"].scale == pytest.approx(scale, rel=1e-6)
    assert plan.tensors["x"].zero_point == np.rint(-low / scale)
    assert set(plan.tensors) == {"x", "c", "s", "d"}


@pytest.mark.parametrize("size", [500, 700])
def test_a_tensor_below_half_a_step_stays_float(size: int) -> None:
    """Values of magnitude 1 and one of `size`: steps of (size + 1) / 255."""
    x = np.sign(normal(1, 8, 20, 20))
    x[0, 0, 0, 0] = size
    steps = float(np.abs(x).mean()) * 255 / (size + 1)
    text, weights = CHAIN.replace("6,6", "20,20"), {"w": POINT, "v": POINT}
    result = int8(text, weights, [{"x": x}])
    assert ("x" in result.plan.tensors) == (steps >= 0.5) == (size == 500)
    if steps < 0.5:
        assert f"its input 'x' has range [-1, {size}] but mean magnitude" in result.plan.kept_float["Conv_0"]
        assert f"{steps:.2f} steps of uint8" in result.plan.kept_float["Conv_0"]
    for resolution, placed in ((0, True), (steps * 0.99, True), (steps * 1.01, False)):
        found = int8(text, weights, [{"x": x}], f"place-int8.resolution={resolution}")
        assert found.plan.kept_float.get("Conv_0", "").startswith("its input 'x'") != placed


def test_a_clip_that_cuts_giants_off_is_no_way_out() -> None:
    x = np.sign(normal(8, 8, 40, 40))
    x[0, 0, 0, 0] = 4000
    text, weights = CHAIN.replace("6,6", "40,40"), {"w": POINT, "v": POINT}
    samples = [{"x": part[None]} for part in x]
    options = ("calibrate.method=percentile", "calibrate.percentile=99")
    assert "but mean magnitude" in int8(text, weights, samples, *options).plan.kept_float["Conv_0"]
    resolved = int8(text, weights, samples, *options, "place-int8.resolution=0").plan
    assert resolved.tensors["x"].scale < 0.1, "the clip alone would resolve it"


def test_an_unresolved_output_keeps_the_writer_float_and_pins_products() -> None:
    """Gemm may still read codes and write float; Conv has no such form."""
    text = head() + "g (float[99,8] x) => (float[99,8] y) { h = Gemm (x, w) k = Mul (h, s) y = Gemm (k, v) }"
    spike = np.ones((99, 8), np.float32)
    spike[0, 0] = 1e6
    weights = {"w": normal(8, 8), "s": spike, "v": normal(8, 8, seed=1)}
    plan = int8(text, weights, [{"x": normal(99, 8)}]).plan
    assert {unit.output: unit.form for unit in plan.units.values()} == {"h": Form.INPUTS}
    assert "its input 's' has range" in plan.kept_float["Mul_1"]
    assert "its input 'k' has range" in plan.kept_float["Gemm_2"]


def test_patterns_keep_nodes_float() -> None:
    result = int8(CHAIN, WEIGHTS, SAMPLES, "place-int8.keep-float=['Conv_?', nothing]")
    assert result.context.notices == ["no node is called 'nothing' (option keep-float of place-int8)"]
    assert result.plan.units == {}
    assert result.plan.kept_float["Conv_0"] == "kept float by the option keep-float ('Conv_?')"
    assert result.sqnr("y") == np.inf or result.sqnr("y") > 100
    one = int8(CHAIN, WEIGHTS, SAMPLES, "place-int8.keep-float=['Conv_2']")
    assert one.forms == {"c": "FULL", "s": "FULL"}
    check(one)


ATTENTION = (
    head()
    + """g (float[2,6,16] x) => (float[2,6,16] y) {
  q = MatMul (x, wq)
  k = MatMul (x, wk)
  v = MatMul (x, wv)
  t = Transpose <perm = [0, 2, 1]> (k)
  s = MatMul (q, t)
  p = Softmax (s)
  a = MatMul (p, v)
  o = MatMul (a, wo)
  y = Add (o, b)
}"""
)
HEADS = {n: normal(16, 16, seed=i) / np.float32(4) for i, n in enumerate(("wq", "wk", "wv", "wo"))} | {"b": normal(16)}


def test_products_of_activations_are_asked_for() -> None:
    sample = {"x": normal(2, 6, 16)}
    default = int8(ATTENTION, HEADS, [sample])
    assert default.plan.kept_float["MatMul_4"] == "a product of two activations (option activation-products)"
    assert "s" not in default.forms
    check(default)
    asked = int8(ATTENTION, HEADS, [sample], "place-int8.activation-products=true")
    assert asked.forms["s"] == "INPUTS"
    assert asked.forms["a"] in ("INPUTS", "FULL")
    check(asked)


@pytest.mark.parametrize("order", ["Add (m, b)", "Add (b, m)"])
def test_a_bias_on_either_side_belongs_to_its_product(order: str) -> None:
    text = head() + "g (float[2,6,16] x) => (float[2,6,8] y) { m = MatMul (x, w) y = " + order + " }"
    result = int8(text, {"w": normal(16, 8), "b": 100 * normal(8)}, [{"x": normal(2, 6, 16)}])
    [unit] = result.plan.units.values()
    assert (unit.op_type, unit.bias, unit.output) == ("MatMul", "Add_1", "y")
    assert [n.op_type for n in result.model.graph] == ["QuantizeLinear", "MatMulIntegerToFloat"]
    check(result, least=30)


@pytest.mark.parametrize(
    ("bias", "owned"), [((8,), True), ((1, 8), False), ((6, 8), False), ((2, 1, 8), False), ((1,), False)], ids=str
)
def test_only_a_vector_is_a_bias(bias: tuple[int, ...], owned: bool) -> None:
    text = head() + "g (float[2,6,16] x) => (float[2,6,8] y) { m = MatMul (x, w) a = Add (m, b) y = Tanh (a) }"
    result = int8(text, {"w": normal(16, 8), "b": normal(*bias)}, [{"x": normal(2, 6, 16)}])
    [unit] = [u for u in result.plan.units.values() if u.op_type == "MatMul"]
    assert (unit.bias == "Add_1") == owned
    check(result)


@pytest.mark.parametrize(
    ("bias", "int8_"),
    [((8,), True), ((1, 8), True), ((1,), True), ((), True), ((6, 8), False), ((6, 1), False)],
    ids=str,
)
def test_a_gemm_whose_bias_is_no_row_stays_float(bias: tuple[int, ...], int8_: bool) -> None:
    text = head() + "g (float[6,16] x) => (float[6,8] y) { h = Gemm (x, w, b) y = Tanh (h) }"
    result = int8(text, {"w": normal(16, 8), "b": 5 * normal(*bias)}, [{"x": normal(6, 16)}])
    assert bool(result.plan.units) == int8_
    if not int8_:
        assert result.plan.kept_float["Gemm_0"] == "its bias is not one value for each output column"
    check(result)


def test_a_square_gemm_with_a_column_bias() -> None:
    """As many rows as columns: taken for a row, the bias would be silently transposed."""
    text = head() + "g (float[8,16] x) => (float[8,8] y) { y = Gemm (x, w, b) }"
    result = int8(text, {"w": normal(16, 8), "b": 50 * normal(8, 1)}, [{"x": normal(8, 16)}])
    check(result)


def test_a_branch_that_no_sample_takes_stays_float() -> None:
    text = (
        head()
        + """g (float[1,8,6,6] x, bool c) => (float[1,8,6,6] y) {
      y = If (c) <
        then_branch = t () => (float[1,8,6,6] p) { p = Conv (x, w) },
        else_branch = e () => (float[1,8,6,6] q) { r = Conv (x, v) q = Conv (r, w) }
      >
    }"""
    )
    result = int8(text, WEIGHTS, [{**s, "c": np.array(True)} for s in SAMPLES])
    assert result.forms == {"p": "FULL"}
    reasons = {k: v for k, v in result.plan.kept_float.items() if k.startswith("Conv")}
    assert len(reasons) == 2
    assert all("was observed on no sample" in why for why in reasons.values())


MASKED = (
    head()
    + """g (float[1,8,6,6] x, float[1,1,6,6] mask) => (float[1,8,6,6] y) {
  c = Conv (x, w)
  m = Add (c, mask)
  y = Softmax (m)
}"""
)


@pytest.mark.parametrize("hidden", [-np.inf, np.finfo(np.float32).min, -1e9])
def test_masked_scores_stay_float(hidden: float) -> None:
    mask = np.zeros((1, 1, 6, 6), np.float32)
    mask[..., 4:] = hidden
    result = int8(MASKED, WEIGHTS, [{**s, "mask": mask} for s in SAMPLES], "place-int8.resolution=0.5")
    assert "c" in result.forms or result.plan.kept_float
    assert "m" not in result.forms or hidden == -1e9
    assert np.isfinite(result.plain["y"]).all()


def test_moves_keep_the_scale_of_their_source() -> None:
    text = IMAGES + "{ c = Conv (x, w) t = Transpose <perm = [0, 1, 3, 2]> (c) y = Conv (t, v) }"
    plan = int8(text, WEIGHTS, SAMPLES).plan
    assert plan.units["Transpose_1"].form is Form.PASS
    assert plan.tensors["t"] is plan.tensors["c"]


def test_on_the_real_table_small_graphs_stay_float_and_say_why() -> None:
    result = int8(CHAIN, WEIGHTS, SAMPLES, target=target_named("cpu"))
    assert result.plan.units == {}
    assert set(result.plan.kept_float.values()) == {
        "int8 with the conversions it needs would take longer than float here",
        "there is no int8 form of it on cpu",
    }


def test_the_reader_of_a_swallowed_convolution() -> None:
    """A float convolution between codes would become int8 per tensor in the runtime; so it is placed."""
    cpu = target_named("cpu")
    eager, slow = replace(cpu.rows[0].float_cost, fixed=1e9), replace(cpu.rows[0].float_cost, fixed=1e7)
    rows = tuple(
        replace(r, forms={Form.FULL: slow}) if r.variant == "depthwise" else replace(r, float_cost=eager)
        for r in cpu.rows
    )
    text = IMAGES + "{ c = Conv (x, w) d = Conv <group = 8> (c, u) y = Conv (d, v) }"
    result = int8(text, WEIGHTS | {"u": normal(8, 1, 1, 1)}, SAMPLES, target=replace(cpu, rows=rows))
    assert result.forms == dict.fromkeys("cdy", "FULL")
    check(result)


def test_an_operator_that_the_target_refuses_stays_float_and_says_why() -> None:
    result = int8(CHAIN, WEIGHTS, SAMPLES, target=target_named("cuda"))
    assert result.plan.units == {}
    assert "no 8-bit convolution on CUDA" in result.plan.kept_float["Conv_0"]


@pytest.mark.parametrize("small", [0.001, 0.1])
def test_moved_codes_must_still_resolve_what_they_carry(small: float) -> None:
    """A Slice keeps the scale of its source; the slice of tiny values would be all zeros."""
    text = head() + "g (float[1,6,6,6] x) => (float[1,6,6,6] y) { s = Slice (x, lo, hi, axis) y = Conv (s, w) }"
    x = normal(1, 6, 6, 6)
    x[:, 3:] *= small / 5
    weights = {"lo": np.int64([3]), "hi": np.int64([6]), "axis": np.int64([1]), "w": normal(6, 3, 1, 1)}
    result = int8(text, weights, [{"x": x}])
    moved = "s" in result.forms
    assert moved == (small == 0.1)
    if not moved:
        assert "steps at the scale of 'x'" in result.plan.kept_float["Slice_0"]
        check(result)
