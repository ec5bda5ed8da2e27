"""What the graph says of its own tensors, against numpy on the tensors themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from qcompile.compiler.observation import observe as observed
from qcompile.compiler.printer import print_model
from qcompile.compiler.statistics import RANGE, Channels, Statistic, Vector
from qcompile.passes.prepare.infer_shapes import infer_shapes
from tests.passes.harness import Arrays, model_of, outputs

HEAD = '<ir_version: 8, opset_import: ["": 17]> '
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((3, 5)).astype(np.float32)
W = RANDOM.standard_normal(5).astype(np.float32)

Seen = dict[str, tuple[float, ...]]


def observe(model: ir.Model, feeds: Arrays, *names: str) -> Seen:
    """Minimum, maximum, sum of magnitudes and count of each tensor that was found."""
    return {t: tuple(map(float, v)) for t, v in vectors(model, feeds, RANGE, *names).items()}


def vectors(model: ir.Model, feeds: Arrays, statistic: Statistic, *names: str) -> dict[str, Vector]:
    infer_shapes(model)
    before = print_model(model)
    found = observed(model, {name: [statistic] for name in names})
    assert print_model(model) == before, "the model itself is left alone"
    if not found.blocks:
        return {}
    said = outputs(found.model, feeds)
    assert said[0].dtype == np.float32
    return {
        tensor: vector
        for block, seen in zip(found.blocks, found.read(said), strict=True)
        for tensor, vector in zip(block.tensors, seen, strict=True)
    }


def facts(*tensors: npt.NDArray[Any]) -> Any:
    """The same of arrays: one after the other; to a rounding of float32."""
    x = np.concatenate([np.asarray(t).reshape(-1) for t in tensors])
    return pytest.approx((x.min(), x.max(), np.abs(x).sum(dtype=np.float64), x.size), rel=2e-6)


NOTHING = tuple(RANGE.identity())


def test_inputs_and_values_of_the_main_graph() -> None:
    model = model_of(HEAD + "g (float[3,5] x) => (float[3,5] y) { h = Mul (x, w) y = Relu (h) }", {"w": W})
    seen = observe(model, {"x": X}, "x", "h", "y", "no such tensor", "w")
    assert seen == {"x": facts(X), "h": facts(X * W), "y": facts(np.maximum(X * W, 0))}
    assert seen["h"][:2] == ((X * W).min(), (X * W).max()), "bounds are exact"


def test_tensors_named_like_a_statistic() -> None:
    model = model_of(
        HEAD + "g (float[3,5] x) => (float[3,5] y) { max = Mul (x, w) y = Sub (max, w) }", {"w": W, "x.min": W}
    )
    model.graph.node(0).outputs[0].name = "x.max"
    assert observe(model, {"x": X}, "x", "x.max") == {"x": facts(X), "x.max": facts(X * W)}


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_tensors_without_elements(shape: tuple[int, int]) -> None:
    model = model_of(HEAD + "g (float[N,M] x) => (float[N,M] y) { y = Relu (x) }")
    assert observe(model, {"x": np.zeros(shape, np.float32)}, "x", "y") == {"x": NOTHING, "y": NOTHING}


BRANCHES = """g (float[3,5] x, bool c, bool d) => (float[3,5] y) {
  h = If (c) <
    then_branch = t () => (float[3,5] p) { a = Exp (x) p = Neg (a) },
    else_branch = e () => (float[3,5] q) {
      b = Mul (x, w)
      q = If (d) <
        then_branch = tt () => (float[3,5] r) { r = Abs (b) },
        else_branch = ee () => (float[3,5] s) { s = Sub (b, x) }
      >
    }
  >
  y = Mul (h, w)
}"""


@pytest.mark.parametrize(("c", "d"), [(True, True), (False, True), (False, False)])
def test_both_branches_of_nested_ifs(c: bool, d: bool) -> None:
    feeds = {"x": X, "c": np.array(c), "d": np.array(d)}
    seen = observe(model_of(HEAD + BRANCHES, {"w": W}), feeds, *"xapbrsqhy")
    a, b = np.exp(X), X * W
    inner = np.abs(b) if d else b - X
    result = -a if c else inner
    assert seen == {
        "x": facts(X),
        "a": facts(a) if c else NOTHING,
        "p": facts(-a) if c else NOTHING,
        "b": NOTHING if c else facts(b),
        "r": facts(inner) if not c and d else NOTHING,
        "s": facts(inner) if not c and not d else NOTHING,
        "q": NOTHING if c else facts(inner),
        "h": facts(result),
        "y": facts(result * W),
    }


LOOP = """g (float[5] x, int64 n) => (float[5] y, float[K,5] z) {
  last, other, scan, scan2 = Loop (n, , x, w) < body = b (int64 i, bool k, float[5] s, float[5] u)
      => (bool go, float[5] t, float[5] v, float[5] m, float[5] o) {
    go = Identity (k)
    t = Add (s, u)
    v = Sub (u, half)
    odd = Greater (i, one)
    m = If (odd) <
      then_branch = t () => (float[5] p) { p = Mul (t, v) },
      else_branch = e () => (float[5] q) { q = Neg (t) }
    >
    o = Exp (u)
  } >
  y = Add (last, other)
  f = Identity (scan)
  z = Mul (f, scan2)
}"""


@pytest.mark.parametrize("turns", [0, 1, 4])
def test_loops_carry_the_statistics_and_keep_their_results(turns: int) -> None:
    weights = {"w": W, "half": np.float32(0.5), "one": np.int64(1)}
    feeds = {"x": X[0], "n": np.array(turns)}
    seen = observe(model_of(HEAD + LOOP, weights), feeds, *"tvpqmo", "last", "other", "f", "scan2", *"yz")
    s, u, turn = X[0], W, {name: list[Any]() for name in "tvpqmo"}
    for i in range(turns):
        t, v, o = s + u, u - np.float32(0.5), np.exp(u)
        turn["t"].append(t)
        turn["v"].append(v)
        turn["o"].append(o)
        turn["p" if i > 1 else "q"].append(m := t * v if i > 1 else -t)
        turn["m"].append(m)
        s, u = t, v
    scan, scan2 = (np.array(turn[k]).reshape(-1, 5) for k in "mo")
    expected = {k: facts(*v) if v else NOTHING for k, v in turn.items()}
    expected |= {"last": facts(s), "other": facts(u), "y": facts(s + u)}
    for name, array in (("f", scan), ("scan2", scan2), ("z", scan * scan2)):
        expected[name] = facts(array) if turns else NOTHING
    for name, wanted in expected.items():
        assert seen[name] == wanted, name


def test_a_loop_in_a_branch() -> None:
    text = """g (float[5] x, bool c) => (float[5] y) {
      y = If (c) <
        then_branch = t () => (float[5] p) {
          p = Loop (n, , x) < body = b (int64 i, bool k, float[5] s) => (bool go, float[5] u) {
            go = Identity (k)
            u = Add (s, w)
          } >
        },
        else_branch = e () => (float[5] q) { q = Neg (x) }
      >
    }"""
    model = model_of(HEAD + text, {"w": W, "n": np.int64(3)})
    taken = observe(model, {"x": X[0], "c": np.array(True)}, "u", "q", "y")
    steps = [X[0] + (i + 1) * W for i in range(3)]
    assert taken["u"] == facts(*steps)
    assert taken["q"] == NOTHING
    assert taken["y"] == facts(steps[-1])
    other = observe(model, {"x": X[0], "c": np.array(False)}, "u", "q", "y")
    assert other == {"u": NOTHING, "q": facts(-X[0]), "y": facts(-X[0])}


def test_the_body_of_a_scan_is_left_out() -> None:
    text = """g (float[3,5] x) => (float[5] y) {
      last, all = Scan <num_scan_inputs = 1, body = b (float[5] s, float[5] r) => (float[5] t, float[5] o) {
        t = Add (s, r) o = Identity (t)
      }> (w, x)
      y = Relu (last)
    }"""
    seen = observe(model_of(HEAD + text, {"w": W}), {"x": X}, "t", "last", "y")
    total = W + X[0] + X[1] + X[2]
    assert list(seen) == ["last", "y"]
    assert seen["last"] == facts(total)


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_in_every_opset(opset: int) -> None:
    text = HEAD.replace("17", str(opset)) + "g (float[3,5] x) => (float[3,5] y) { y = Relu (x) }"
    assert observe(model_of(text), {"x": X}, "x") == {"x": facts(X)}


def by_channel(axis: int, *tensors: npt.NDArray[Any]) -> Any:
    """Channels(axis) of arrays that follow each other, written with numpy."""
    rows = np.concatenate([np.moveaxis(t, axis, -1).reshape(-1, t.shape[axis]) for t in map(np.asarray, tensors)])
    x = rows.astype(np.float64)
    parts = [x.min(0), x.max(0), x.sum(0), np.abs(x).sum(0), [x.size]]
    return pytest.approx(np.concatenate(parts), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 5), -1), ((3, 5), 0), ((2, 3, 4, 5), 1), ((5,), -1), ((1, 2, 1, 2, 3, 2), 4)]
)
def test_channels_of_any_axis(shape: tuple[int, ...], axis: int, opset: int) -> None:
    x = RANDOM.standard_normal(shape).astype(np.float32)
    dims = ",".join(map(str, shape))
    model = model_of(HEAD.replace("17", str(opset)) + f"g (float[{dims}] x) => (float[{dims}] y) {{ y = Neg (x) }}")
    seen = vectors(model, {"x": x}, Channels(axis), "x", "y")
    assert seen["x"] == by_channel(axis, x)
    assert seen["y"] == by_channel(axis, -x)


def test_channels_of_unknown_number_have_no_place() -> None:
    model = model_of(HEAD + "g (float[N,M] x) => (float[N,M] y) { y = Relu (x) }")
    assert vectors(model, {"x": X}, Channels(-1), "x", "y") == {}
    assert vectors(model_of(HEAD + "g (float s) => (float y) { y = Relu (s) }"), {}, Channels(-1), "s") == {}


def test_channels_without_elements() -> None:
    model = model_of(HEAD + "g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }")
    seen = vectors(model, {"x": np.zeros((0, 3), np.float32)}, Channels(-1), "x")
    np.testing.assert_array_equal(seen["x"], Channels(-1).identity(3))


@pytest.mark.parametrize("c", [True, False])
def test_channels_in_branches(c: bool) -> None:
    feeds = {"x": X, "c": np.array(c), "d": np.array(True)}
    seen = vectors(model_of(HEAD + BRANCHES, {"w": W}), feeds, Channels(-1), "a", "r", "h")
    nothing = pytest.approx(Channels(-1).identity(5))
    assert seen["a"] == (by_channel(-1, np.exp(X)) if c else nothing)
    assert seen["r"] == (nothing if c else by_channel(-1, np.abs(X * W)))
    assert seen["h"] == by_channel(-1, -np.exp(X) if c else np.abs(X * W))


def test_channels_in_loops() -> None:
    weights = {"w": W, "half": np.float32(0.5), "one": np.int64(1)}
    seen = vectors(model_of(HEAD + LOOP, weights), {"x": X[0], "n": np.array(3)}, Channels(0), "v", "p")
    u = [W - np.float32(0.5) * (i + 1) for i in range(3)]
    assert seen["v"] == by_channel(-1, *(x[None] for x in u))
