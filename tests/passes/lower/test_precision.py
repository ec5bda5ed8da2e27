"""Half precision: which operators, which Casts, and what the rules and the samples keep in float32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.compiler.graph import add_initializer
from qcompile.compiler.operators import linear_w8a8, quantize_rows
from qcompile.compiler.printer import print_model
from qcompile.compiler.targets import target_named
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.passes.lower.precision import Precision
from tests.golden import assert_golden
from tests.passes.harness import NAMED, Arrays, context, model_of, outputs, run
from tests.passes.int8 import head, normal
from tests.sweep.harness import compile_in_memory

CUDA = target_named("cuda")
Weights = dict[str, np.ndarray[Any, Any]]


def precise(
    text: str, weights: Weights, sample: Arrays | None = None, close: float = 2e-3, **options: Any
) -> tuple[ir.Model, list[str]]:
    """The model in half precision for CUDA, with the notices; its outputs are those of float32 to `close`."""
    model = model_of(text, weights)
    on = replace(context(), target=CUDA, held_out=[sample] if sample is not None else [])
    expected = outputs(model, sample) if sample is not None else []
    run(model, *NAMED, Precision(**options), on=on)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    if sample is not None:
        for a, b in zip(expected, outputs(model, sample), strict=True):
            assert a.dtype == b.dtype
            assert np.abs(a - b).max() <= close * np.abs(a).max()
    return model, on.notices


def half(model: ir.Model) -> list[str]:
    """Operators with a half result, Casts to and from it apart."""
    found = [n for n in model.graph.all_nodes() if n.op_type != "Cast"]
    return [n.op_type for n in found if any(v.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) for v in n.outputs)]


def casts(model: ir.Model) -> int:
    return sum(n.op_type == "Cast" for n in model.graph.all_nodes())


ATTENTION = (
    head() + "g (float[N,S,16] x) => (float[N,S,16] y) { n = LayerNormalization <axis=-1> (x, g, b) q = MatMul (n, w) "
    "t = Transpose <perm=[0,2,1]> (q) s = MatMul (q, t) p = Softmax <axis=-1> (s) o = MatMul (p, q) y = Add (o, x) }"
)
WEIGHTS: Weights = {"g": normal(16), "b": normal(16), "w": normal(16, 16)}


def test_golden() -> None:
    """One region with a Cast at each border; a shared constant whose other reader stays float32."""
    text = (
        head() + "g (float[2,8] x) => (float[2,8] y, float[2,1] s) { m = MatMul (x, w) a = Add (m, c) r = Relu (a) "
        "e = Exp (c) f = Add (r, e) y = MatMul (f, w) z = ReduceSum <keepdims=1> (r, axes) s = Sqrt (z) }"
    )
    model = model_of(text, {"w": normal(8, 8), "c": normal(8), "axes": np.array([1])})
    run(model, *NAMED)
    before = print_model(model)
    run(model, *NAMED, Precision(), on=replace(context(), target=CUDA))
    assert_golden("passes/precision", f"# before\n{before}\n# after\n{print_model(model, provenance=True)}")


def test_attention_is_one_region_and_the_interface_stays_float32() -> None:
    model, notices = precise(ATTENTION, WEIGHTS, {"x": normal(2, 5, 16)})
    assert casts(model) == 2
    assert len(half(model)) == 7
    assert [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)] == [ir.DataType.FLOAT] * 2
    assert [v.name for v in model.graph.outputs] == ["y"]
    assert not [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT]
    assert notices == ["7 operations compute in float16, with 2 Casts"]


def test_bfloat16_where_the_target_has_kernels_for_it() -> None:
    text = head() + "g (float[2,8] x) => (float[2,8] y) { m = MatMul (x, w) e = Elu (m) y = MatMul (e, w) }"
    model, _ = precise(text, {"w": normal(8, 8)}, dtype="bfloat16")
    assert half(model) == ["MatMul", "MatMul"]
    assert casts(model) == 4
    assert half(precise(text, {"w": normal(8, 8)})[0]) == ["MatMul", "Elu", "MatMul"]


def test_tensorrt_gets_a_graph_in_float16() -> None:
    model = model_of(ATTENTION, WEIGHTS)
    assert run(model, *NAMED, Precision(), on=replace(context(), target=target_named("tensorrt")))[-1].modified
    assert half(model) == half(precise(ATTENTION, WEIGHTS)[0])


def test_the_cpu_keeps_float32_and_says_why_when_asked() -> None:
    for options, told in (({}, False), ({"dtype": "float16"}, True), ({"dtype": "float32"}, False)):
        model = model_of(ATTENTION, WEIGHTS)
        on = replace(context(), target=target_named("cpu"))
        assert not run(model, *NAMED, Precision(**options), on=on)[-1].modified  # type: ignore[arg-type]
        assert bool(on.notices) is told


def test_float32_switches_it_off() -> None:
    assert half(precise(ATTENTION, WEIGHTS, {"x": normal(2, 5, 16)}, dtype="float32")[0]) == []


def test_nodes_kept_by_name() -> None:
    model, _ = precise(ATTENTION, WEIGHTS, keep_float=["Softmax*"])
    assert "Softmax" not in half(model)
    assert casts(model) == 4


def test_the_inside_of_a_normalization_stays_float32() -> None:
    """Squares of 300 overflow; the mean and the variance cancel."""
    text = (
        head() + "g (float[2,8] x) => (float[2,8] y) { m = MatMul (x, w) a = ReduceMean <axes=[-1]> (m) d = Sub (m, a) "
        "q = Pow (d, two) v = ReduceMean <axes=[-1]> (q) e = Add (v, eps) s = Sqrt (e) n = Div (d, s) g1 = Mul (n, g) "
        "y = MatMul (g1, w) }"
    )
    weights = {"w": normal(8, 8), "two": np.float32(2), "eps": np.float32(1e-12), "g": normal(8)}
    model, _ = precise(text, weights, {"x": 300 * normal(2, 8)})
    assert half(model) == ["MatMul", "Mul", "MatMul"]
    assert casts(model) == 4


def test_squares_that_a_reduction_adds_up_stay_float32() -> None:
    text = (
        head() + "g (float[2,8] x) => (float[2,8] y) { q = Mul (x, x) v = ReduceMean <axes=[-1]> (q) "
        "s = Sqrt (v) n = Div (x, s) y = MatMul (n, w) }"
    )
    model, _ = precise(text, {"w": normal(8, 8)}, {"x": 300 * normal(2, 8)})
    assert "Mul" not in half(model)
    assert "MatMul" in half(model)


ROTATION = (
    head() + "g (int64[1,4] at, float[1,4,4] x) => (float[1,4,4] y) { p = Cast <to=1> (at) c = Unsqueeze (p, last) "
    "a = MatMul (c, f) s = Sin (a) m = MatMul (x, w) y = Mul (m, s) }"
)
ROTATED: Weights = {"last": np.array([2]), "f": normal(1, 4), "w": normal(4, 4)}


def test_angles_and_positions_stay_float32() -> None:
    model, _ = precise(ROTATION, ROTATED, {"at": np.array([[1, 2000, 3001, 4001]]), "x": normal(1, 4, 4)})
    assert half(model) == ["MatMul"], "one Cast behind it; the angle's product and the rotation are float32"
    assert model.graph.node("MatMul_2").outputs[0].dtype == ir.DataType.FLOAT


def test_indices_are_computed_in_float32() -> None:
    text = (
        head() + "g (float[2,8] x, float[1] r) => (float[2,8] y) { m = MatMul (x, w) t = Mul (r, k) f = Floor (t) "
        "i = Cast <to=7> (f) j = Gather <axis=1> (m, i) y = Add (m, j) }"
    )
    sample = {"x": normal(2, 8), "r": np.float32([0.9])}
    model, _ = precise(text, {"w": normal(8, 8), "k": np.float32([7.9])}, sample)
    assert half(model) == ["MatMul", "Gather", "Add"]


def test_what_overflows_on_a_sample_stays_float32() -> None:
    text = head() + "g (float[2,8] x) => (float[2,8] y) { m = MatMul (x, w) b = Mul (m, k) y = Div (b, k) }"
    weights = {"w": normal(8, 8), "k": np.float32(2e4)}
    model, notices = precise(text, weights, {"x": 3 * normal(2, 8)})
    assert half(model) == ["MatMul"]
    assert "1 tensor stays float32" in notices[1]
    assert "'b' reaches" in notices[1]
    unseen, told = precise(text, weights)
    assert half(unseen) == ["MatMul", "Mul", "Div"]
    assert "--calib" in told[1]


def test_what_is_too_small_on_a_sample_stays_float32() -> None:
    text = head() + "g (float[2,8] x) => (float[2,8] y) { m = MatMul (x, w) b = Mul (m, k) y = Div (b, k) }"
    model, _ = precise(text, {"w": normal(8, 8), "k": np.float32(1e-4)}, {"x": normal(2, 8) / 100})
    assert half(model) == ["MatMul"]


@pytest.mark.parametrize("value", [1e-12, -3.4e38, 7e4])
def test_constants_that_do_not_fit_stay_float32(value: float) -> None:
    text = head() + "g (float[2,8] x) => (float[2,8] y) { m = MatMul (x, w) a = Add (m, k) y = MatMul (a, w) }"
    model, _ = precise(text, {"w": normal(8, 8), "k": np.float32(value)})
    assert half(model) == ["MatMul", "MatMul"]


def test_an_infinite_constant_fits() -> None:
    text = head() + "g (float[2,8] x, bool[2,8] c) => (float[2,8] y) { m = MatMul (x, w) y = Where (c, m, k) }"
    assert half(precise(text, {"w": normal(8, 8), "k": np.float32(-np.inf)})[0]) == ["MatMul", "Where"]


def test_bodies_read_outer_values_through_one_cast() -> None:
    text = (
        head() + "g (bool c, float[2,8] x) => (float[2,8] y) { m = MatMul (x, w) y = If (c) < "
        "then_branch = a () => (float[2,8] p) { p = MatMul (m, w) }, "
        "else_branch = b () => (float[2,8] q) { h = MatMul (m, w) k = Relu (h) q = Exp (k) } > }"
    )
    for flag in (True, False):
        model, _ = precise(text, {"w": normal(8, 8) / 3}, {"c": np.array(flag), "x": normal(2, 8)})
        assert half(model) == ["MatMul", "MatMul", "MatMul", "Relu"]
        assert casts(model) == 3, "of x, and of what each branch returns"


def test_scales_of_a_resize_stay_float32() -> None:
    text = head() + "g (float[1,3,4,4] x) => (float[1,3,8,8] y) { c = Conv (x, w) r = Resize (c, , s) y = Conv (r, w) }"
    weights = {"w": normal(3, 3, 1, 1), "s": np.float32([1, 1, 2, 2])}
    model, _ = precise(text, weights, {"x": normal(1, 3, 4, 4)})
    assert half(model) == ["Conv", "Resize", "Conv"]
    assert model.graph.initializers["s"].dtype == ir.DataType.FLOAT


def test_split_is_one_node_with_many_results() -> None:
    text = (
        head() + "g (float[2,8] x) => (float[2,4] y, float[2,4] z) { m = MatMul (x, w) a, b = Split <axis=1> (m) "
        "y = MatMul (a, v) z = Exp (b) }"
    )
    model, _ = precise(text, {"w": normal(8, 8) / 3, "v": normal(4, 4)}, {"x": normal(2, 8)})
    assert half(model) == ["MatMul", "Split", "MatMul"]
    assert casts(model) == 3


def test_a_cast_of_small_integers_makes_half_by_itself() -> None:
    text = head() + "g (int8[2,8] x) => (float[2,8] y) { f = Cast <to=1> (x) m = MatMul (f, w) y = Exp (m) }"
    model, _ = precise(text, {"w": normal(8, 8) / 20}, {"x": np.ones((2, 8), np.int8)})
    assert casts(model) == 2
    assert model.graph.node("Cast_0").outputs[0].dtype == ir.DataType.FLOAT16


def test_the_recipe_on_the_cpu_changes_nothing_and_says_so() -> None:
    model = model_of(ATTENTION, WEIGHTS)
    on = replace(context(), target=target_named("cpu"))
    run(model, *find_recipe("fp16").passes(), on=on)
    assert half(model) == []
    assert "computes in float32" in on.notices[0]


MASKED = (
    head()
    + "g (float[2,5,8] x, float[2,1,5] m) => (float[2,5,8] y) { q = MatMul (x, w) t = Transpose <perm=[0,2,1]> (q) "
    "s = MatMul (q, t) n = Mul (m, lowest) a = Add (s, n) p = Softmax <axis=-1> (a) y = MatMul (p, q) }"
)


@pytest.mark.parametrize("sampled", [True, False])
def test_a_mask_is_bounded_so_that_scores_stay_half(sampled: bool) -> None:
    """A penalty of -3.4e38 overflows; -32768 masks as well. The bound comes from samples or from the constant."""
    penalty = np.float32([[[0, 0, 0, 1, 1]], [[0, 0, 0, 0, 0]]])
    weights = {"w": normal(8, 8) / 3, "lowest": np.finfo(np.float32).min}
    sample = {"x": normal(2, 5, 8), "m": penalty} if sampled else None
    model, _ = precise(MASKED, weights, sample)
    assert half(model) == ["MatMul", "Transpose", "MatMul", "Add", "Softmax", "MatMul"]
    assert casts(model) == 3, "of x, of the mask, of y"
    assert [n.op_type for n in model.graph].count("Max") == 1


def test_a_constant_mask_is_bounded_as_a_constant() -> None:
    text = MASKED.replace("n = Mul (m, lowest) a = Add (s, n)", "a = Add (s, lowest)")
    causal = np.triu(np.full((5, 5), np.finfo(np.float32).min), 1)
    sample = {"x": normal(2, 5, 8), "m": normal(2, 1, 5)}
    model, _ = precise(text, {"w": normal(8, 8) / 3, "lowest": causal}, sample)
    assert casts(model) == 2
    assert not [n for n in model.graph if n.op_type == "Max"]


def test_operators_of_qcompile_become_their_half_variants() -> None:
    """Activations change their type, scales and biases do not; a float32 body that nobody calls any more goes."""
    model = model_of(
        head() + "g (float[2,8] x) => (float[2,4] y) { m = MatMul (x, u) a = Add (m, t) y = MatMul (a, v) }",
        {"u": normal(8, 16), "t": normal(16), "v": normal(16, 4)},
    )
    arrays = {"w": np.ones((16, 16), np.int8), "s": np.full(16, 0.01, np.float32), "b": np.ones(16, np.float32)}
    constants = [add_initializer(model.graph, name, array) for name, array in arrays.items()]
    product, add, _ = model.graph
    rows = quantize_rows().node([product.outputs[0]], name="rows")
    operator = linear_w8a8(bias=True, activation="Relu")
    layer = operator.node([*rows.outputs, *constants], name="layer")
    model.graph.insert_before(add, [rows, layer])
    add.replace_input_with(0, layer.outputs[0])
    for used in (quantize_rows(), operator):
        used.declare(model)
    sample = {"x": normal(2, 8)}
    [expected] = outputs(model, sample)
    run(model, *NAMED, Precision(), on=replace(context(), target=CUDA, held_out=[sample]))
    called = [n.op_type for n in model.graph if n.domain == "qcompile"]
    assert called == ["QuantizeRowsFp16", "LinearW8A8BiasReluFp16"]
    assert sorted(called) == sorted(name for _, name, _ in model.functions)
    assert [model.graph.initializers[name].dtype for name in ("s", "b")] == [ir.DataType.FLOAT] * 2
    assert casts(model) == 2
    [got] = outputs(model, sample)
    assert np.abs(got - expected).max() <= 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("opset", [17, 19])
def test_conversions_to_codes_read_half_from_opset_19_on(opset: int) -> None:
    text = (
        head(opset) + "g (float[2,8] x) => (float[2,8] y) { m = MatMul (x, w) q = QuantizeLinear (m, s, z) "
        "d = DequantizeLinear (q, s, z) y = MatMul (d, w) }"
    )
    weights = {"w": normal(8, 8), "s": np.float32(0.05), "z": np.int8(0)}
    model, _ = precise(text, weights, {"x": normal(2, 8)}, close=2e-2)
    assert half(model) == (["MatMul", "DequantizeLinear", "MatMul"] if opset == 19 else ["MatMul", "MatMul"])
    assert casts(model) == (2 if opset == 19 else 4)


def test_the_scale_of_a_channel_of_next_to_nothing_stays_positive() -> None:
    text = (
        head(19) + "g (float[2,8] x) => (float[2,2] y) { d = DequantizeLinear <axis = 1> (q, s) m = MatMul (x, d) "
        "y = Relu (m) }"
    )
    weights = {"q": np.full((8, 2), 100, np.int8), "s": np.array([1e-12, 0.01], np.float32)}
    model, _ = precise(text, weights, {"x": normal(2, 8)}, close=2e-2)
    [scale] = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT16]
    assert scale.const_value is not None
    assert (scale.const_value.numpy() > 0).all()


@pytest.mark.parametrize("recipe", ["int8-static", "int8-dynamic"])
def test_on_the_cpu_the_step_changes_no_byte(recipe: str) -> None:
    model, samples = ir.to_proto(model_of(ATTENTION, WEIGHTS)), [{"x": normal(2, 5, 16)}]
    passes = find_recipe(recipe).passes()
    assert any(isinstance(p, Precision) for p in passes)
    without = [p for p in passes if not isinstance(p, Precision)]
    assert compile_in_memory(model, samples, passes).data == compile_in_memory(model, samples, without).data
