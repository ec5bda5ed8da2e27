"""Q/DQ lowering: every pattern ends in its kernel, gives the same answers, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from qcompile.compiler.context import Sample
from qcompile.compiler.printer import print_model
from tests.golden import assert_golden
from tests.passes.int8 import Array, check, head, int8, normal

IMAGE = {"x": normal(1, 8, 6, 6)}
ROWS = {"x": normal(6, 16)}


@dataclass(frozen=True)
class Case:
    """A graph, its constants, one sample; the form of each unit by its output; kernels the runtime must show."""

    text: str
    weights: dict[str, Array]
    sample: Sample
    forms: dict[str, str]
    kernels: tuple[str, ...]
    options: tuple[str, ...] = ()


CONV = normal(8, 8, 3, 3, seed=1)
POINT = normal(8, 8, 1, 1, seed=2)
B8 = normal(8, seed=3)
IMAGES = "g (float[1,8,6,6] x) => (float[1,8,6,6] y) "
MATRIX = "g (float[6,16] x) => (float[6,16] y) "
W16 = normal(16, 16, seed=4)
V16 = normal(16, 16, seed=5)
B16 = normal(16, seed=6)

CASES: dict[str, Case] = {
    "convolution with bias": Case(
        IMAGES + "{ c = Conv <pads = [1, 1, 1, 1]> (x, w, b) y = Softmax (c) }",
        {"w": CONV, "b": B8},
        IMAGE,
        {"c": "FULL"},
        ("QLinearConv",),
    ),
    "1-D convolution": Case(
        "g (float[1,8,20] x) => (float[1,4,18] y) { y = Conv (x, w, b) }",
        {"w": normal(4, 8, 3), "b": normal(4)},
        {"x": normal(1, 8, 20)},
        {"y": "FULL"},
        ("QLinearConv",),
    ),
    "3-D convolution": Case(
        "g (float[1,4,6,6,6] x) => (float[1,4,6,6,6] y) { c = Conv (x, w) y = Relu (c) }",
        {"w": normal(4, 4, 1, 1, 1)},
        {"x": normal(1, 4, 6, 6, 6)},
        {},
        (),
    ),
    "depthwise convolution": Case(
        IMAGES + "{ c = Conv <pads = [1, 1, 1, 1], group = 8> (x, w, b) y = Conv (c, v) }",
        {"w": normal(8, 1, 3, 3), "b": B8, "v": POINT},
        IMAGE,
        {"c": "FULL", "y": "FULL"},
        ("QLinearConv", "QLinearConv"),
    ),
    "ReLU": Case(
        IMAGES + "{ c = Conv (x, w, b) r = Relu (c) d = Conv (r, w) y = Softmax (d) }",
        {"w": POINT, "b": B8},
        IMAGE,
        {"r": "FULL", "d": "FULL"},
        ("QLinearConv", "QLinearConv"),
    ),
    "residual": Case(
        IMAGES + "{ c = Conv (x, w, b) r = Relu (c) d = Conv (r, w) s = Add (d, r) t = Relu (s) y = Conv (t, w) }",
        {"w": POINT, "b": B8},
        IMAGE,
        {"r": "FULL", "d": "FULL", "t": "FULL", "y": "FULL"},
        ("QLinearConv", "QLinearConv", "QLinearAdd", "QLinearConv"),
    ),
    "constants as operands": Case(
        IMAGES + "{ c = Conv (x, w) a = Add (c, k) m = Mul (s, a) y = Conv (m, w) }",
        {"w": POINT, "k": normal(1, 8, 6, 6, seed=8), "s": normal(1, 8, 6, 6, seed=9)},
        IMAGE,
        {"c": "FULL", "a": "FULL", "m": "FULL", "y": "FULL"},
        ("QLinearConv", "QLinearAdd", "QLinearMul", "QLinearConv"),
    ),
    "a constant that is a weight and an operand": Case(
        "g (float[16,16] x) => (float[16,16] y) { h = Gemm (x, w) k = Add (h, w) m = Gemm (k, v) y = Softmax (m) }",
        {"w": W16, "v": V16},
        {"x": normal(16, 16)},
        {"h": "FULL", "k": "FULL", "m": "INPUTS"},
        ("QGemm", "QLinearAdd", "QGemm"),
    ),
    "linear layers": Case(
        MATRIX + "{ h = Gemm (x, w, b) r = Relu (h) y = Gemm <transB = 1> (r, v, c) }",
        {"w": W16, "v": V16, "b": B16, "c": normal(1, 16)},
        ROWS,
        {"r": "FULL", "y": "INPUTS"},
        ("QGemm", "QGemm"),
    ),
    "a linear layer that is read as codes and as float": Case(
        "g (float[6,16] x) => (float[6,16] y, float[6,16] z) { h = Gemm (x, w, b) z = Tanh (h) y = Gemm (h, v) }",
        {"w": W16, "v": V16, "b": B16},
        ROWS,
        {"h": "FULL", "y": "INPUTS"},
        ("QGemm", "QGemm"),
    ),
    "outputs that are read inside": Case(
        "g (float[6,16] x) => (float[6,16] y, float[6,16] h, float[6,16] k) "
        "{ h = Gemm (x, w, b) k = Add (h, x) m = MatMul (h, v) l = Gemm (k, v) y = Add (l, m) }",
        {"w": W16, "v": V16, "b": B16},
        ROWS,
        {"h": "FULL", "k": "FULL", "m": "INPUTS", "l": "FULL", "y": "FULL"},
        ("QGemm", "QLinearAdd", "MatMulIntegerToFloat", "QGemm", "QLinearAdd"),
    ),
    "an output twice": Case(
        "g (float[6,16] x) => (float[6,16] y, float[6,16] z) { h = Gemm (x, w) y = Add (h, x) z = Identity (y) }",
        {"w": W16},
        ROWS,
        {"h": "FULL", "y": "FULL"},
        ("QGemm", "QLinearAdd"),
    ),
    "products of activations": Case(
        "g (float[2,6,6] x, float[6,6] w0) => (float[2,6,6] y, float[2,6,6] z) "
        "{ h = MatMul (x, x) m = MatMul (h, v) y = Softmax (m) z = Tanh (h) }",
        {"v": normal(6, 6)},
        {"x": normal(2, 6, 6), "w0": normal(6, 6)},
        {"h": "FULL", "m": "INPUTS"},
        ("QLinearMatMul", "MatMulIntegerToFloat"),
        ("place-int8.activation-products=true",),
    ),
    "codes that are moved": Case(
        "g (float[1,8,6,6] x) => (float[1,8,4,8] y) { c = Conv (x, w) t = Transpose <perm = [0, 1, 3, 2]> (c)"
        " s = Slice (t, one, five, three) r = Reshape (s, shape) y = Conv (r, v) }",
        {
            "w": POINT,
            "v": normal(8, 6, 1, 1),
            "shape": np.int64([1, 6, 4, 8]),
            "one": np.int64([1]),
            "five": np.int64([5]),
            "three": np.int64([3]),
        },
        IMAGE,
        {"c": "FULL", "t": "PASS", "s": "PASS", "r": "PASS", "y": "FULL"},
        ("QLinearConv", "QLinearConv"),
    ),
    "a weight of two units along the same axis": Case(
        IMAGES + "{ c = Conv (x, w, b) d = Conv (c, w, b2) y = Softmax (d) }",
        {"w": np.float32(1e-3) * POINT, "b": B8, "b2": np.float32(1e5) * B8},
        IMAGE,
        {"c": "FULL", "d": "FULL"},
        ("QLinearConv", "QLinearConv"),
    ),
    "a weight of two units along different axes": Case(
        MATRIX + "{ h = Gemm (x, w, b) y = Gemm <transB = 1> (h, w, b) }",
        {"w": W16 * np.float32(np.arange(1, 17)), "b": B16},
        ROWS,
        {"h": "FULL", "y": "INPUTS"},
        ("QGemm", "QGemm"),
    ),
}
_COMPUTING = ("QLinear", "QGemm", "MatMulIntegerToFloat", "Gemm", "MatMul", "Conv", "FusedConv", "Add", "Mul")


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("name", CASES)
def test_every_unit_runs_its_kernel(name: str, opset: int) -> None:
    case = CASES[name]
    result = int8(head(opset) + case.text, case.weights, [case.sample], *case.options)
    assert result.forms == case.forms, result.plan.kept_float
    check(result)
    kernels = [k for k in result.kernels() if k.startswith(_COMPUTING)]
    if case.forms:
        assert sorted(kernels) == sorted(case.kernels)


@pytest.mark.parametrize(("low", "high"), [(0, 6), (-1, 1), (-0.3, 0.7), (-2, 0), (None, 1.5), (-0.2, None)])
def test_a_clip_around_zero_is_left_to_the_range(low: float | None, high: float | None) -> None:
    """Also where rounding the zero point moves the range a little past the bounds."""
    bounds = {k: np.float32(v) for k, v in (("lo", low), ("hi", high)) if v is not None}
    arguments = f"c, {'lo' if low is not None else ''}" + (", hi" if high is not None else "")
    text = IMAGES + "{ c = Conv (x, w, b) r = Clip (" + arguments.rstrip(", ") + ") y = Conv (r, w) }"
    result = int8(head() + text, {"w": POINT, "b": B8, **bounds}, [IMAGE])
    assert result.forms == {"r": "FULL", "y": "FULL"}
    check(result, least=20)
    assert [k for k in result.kernels() if "Conv" in k] == ["QLinearConv"] * 2
    assert not {"Clip", "Relu"}.intersection(n.op_type for n in result.model.graph)


@pytest.mark.parametrize(("low", "high"), [(0.5, 6), (-6, -0.5)])
def test_a_clip_that_shuts_zero_out_stays(low: float, high: float) -> None:
    text = IMAGES + "{ c = Conv (x, w, b) r = Clip (c, lo, hi) y = Conv (r, w) }"
    weights = {"w": POINT, "b": B8, "lo": np.float32(low), "hi": np.float32(high)}
    result = int8(head() + text, weights, [IMAGE])
    assert result.forms == {"c": "FULL", "y": "FULL"}
    check(result, least=20)
    assert "Clip" in [n.op_type for n in result.model.graph]


BRANCHES = """g (float[1,8,6,6] x, bool c) => (float[1,8,6,6] y) {
  h = Conv (x, w)
  m = Conv (h, v)
  z = If (c) <
    then_branch = t () => (float[1,8,6,6] p) { p = Conv (h, w) },
    else_branch = e () => (float[1,8,6,6] q) { r = Conv (x, v) q = Add (r, m) }
  >
  y = Neg (z)
}"""


def test_a_value_that_is_read_inside_a_branch_and_outside() -> None:
    samples = [{"x": np.rint(2 * IMAGE["x"]), "c": np.array(c)} for c in (True, False)]
    weights = {"w": np.rint(2 * POINT), "v": np.rint(2 * normal(8, 8, 1, 1, seed=9))}  # exact sums everywhere
    for order in (samples, samples[::-1]):
        result = int8(head() + BRANCHES, weights, order)
        assert result.forms == dict.fromkeys("hmprq", "FULL")
        check(result)
        assert result.kernels().count("QLinearConv") == 4, "branches convert for themselves"
    assert_golden("passes/lower-qdq-branches", print_model(result.model, provenance=True))


LOOP = """g (float[1,8,6,6] x, int64 n) => (float[1,8,6,6] y, float[K,1,8,6,6] z) {
  y, z = Loop (n, , x) < body = b (int64 i, bool k, float[1,8,6,6] s)
      => (bool go, float[1,8,6,6] t, float[1,8,6,6] o) {
    go = Identity (k)
    c = Conv (s, w, b)
    d = Relu (c)
    t = Conv (d, v)
    o = Tanh (t)
  } >
}"""


def test_the_body_of_a_loop() -> None:
    weights = {"w": POINT / 3, "v": normal(8, 8, 1, 1, seed=9) / 3, "b": B8}
    result = int8(head() + LOOP, weights, [{**IMAGE, "n": np.array(n)} for n in (3, 1)])
    assert result.forms == {"d": "FULL", "t": "FULL"}
    check(result, least=20)
    assert result.kernels().count("QLinearConv") == 2


def test_a_float_convolution_between_codes_is_not_quantized_by_the_runtime() -> None:
    text = IMAGES + "{ c = Conv (x, w) d = Conv (c, v) e = Relu (d) y = Conv (e, w) }"
    weights = {"w": POINT, "v": normal(8, 8, 1, 1, seed=9)}
    result = int8(head() + text, weights, [IMAGE], "place-int8.keep-float=[Conv_1]")
    assert result.forms == {"c": "FULL", "y": "FULL"}
    check(result)
    assert [k for k in result.kernels() if "Conv" in k] == ["QLinearConv", "Conv", "QLinearConv"]
    assert "Relu" not in result.kernels(), "the runtime still fuses it with its convolution"
    plain = int8(
        head() + text.replace("e = Relu (d) y = Conv (e", "y = Conv (d"),
        weights,
        [IMAGE],
        "place-int8.keep-float=[Conv_1]",
    )
    check(plain)
    assert [k for k in plain.kernels() if "Conv" in k] == ["QLinearConv", "Conv", "QLinearConv"]


def test_conversions_exist_once() -> None:
    text = (
        "g (float[6,16] x) => (float[6,16] y) { h = Gemm (x, w) k = Gemm (x, v) l = MatMul (x, w) "
        "m = Add (h, k) n = Add (m, l) o = Add (n, h) y = Tanh (o) }"
    )
    result = int8(head() + text, {"w": W16, "v": V16}, [ROWS])
    names = [str(n.outputs[0].name) for n in result.model.graph if n.op_type == "QuantizeLinear"]
    assert len(names) == len(set(names))
    assert names == [n for n in names if n.endswith("_quantized")], "no second conversion of the same value"
    check(result)


def test_the_same_bytes_twice() -> None:
    for case in (CASES["residual"], CASES["outputs that are read inside"]):
        first, second = (int8(head() + case.text, case.weights, [case.sample]) for _ in range(2))
        assert first.data == second.data


def test_an_existing_name_is_left_alone() -> None:
    text = MATRIX + "{ x_quantized = Tanh (x) h = Gemm (x, w) w_scale = Relu (h) y = Add (w_scale, x_quantized) }"
    result = int8(head() + text, {"w": W16}, [ROWS])
    assert result.model.graph.num_nodes() == len({n.name for n in result.model.graph})
    assert result.sqnr("y") > 25
