"""What the graph says of its own tensors, against numpy on the tensors themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from qcompile.compiler.observation import observed_copy
from qcompile.compiler.printer import print_model
from qcompile.compiler.statistics import RANGE
from tests.passes.harness import Arrays, model_of, outputs

HEAD = '<ir_version: 8, opset_import: ["": 17]> '
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((3, 5)).astype(np.float32)
W = RANDOM.standard_normal(5).astype(np.float32)

Seen = dict[str, tuple[float, ...]]


def observe(model: ir.Model, feeds: Arrays, *names: str) -> Seen:
    """Minimum, maximum, sum of magnitudes and count of each tensor that was found."""
    before = print_model(model)
    copy, keys = observed_copy(model, {name: [RANGE] for name in names})
    assert print_model(model) == before, "the model itself is left alone"
    said = outputs(copy, feeds)
    assert all(v.dtype == np.float32 and v.shape == () for v in said)
    values = dict(zip(keys, (float(v) for v in said), strict=True))
    tensors = dict.fromkeys(tensor for tensor, _, _ in keys)
    return {t: tuple(values[t, RANGE.kind, c.name] for c in RANGE.components) for t in tensors}


def facts(*tensors: npt.NDArray[Any]) -> Any:
    """The same of arrays: one after the other; to a rounding of float32."""
    x = np.concatenate([np.asarray(t).reshape(-1) for t in tensors])
    return pytest.approx((x.min(), x.max(), np.abs(x).sum(dtype=np.float64), x.size), rel=2e-6)


NOTHING = tuple(RANGE.identity)


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
