from __future__ import annotations

import numpy as np

from qcompile.compiler.graph import constant
from qcompile.compiler.printer import print_model
from qcompile.passes.prepare.fold_constants import FoldConstants
from tests.passes.harness import NAMED, check_pass, model_of, run

MODEL = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,2,3] x, bool c) => (float[N,K] y) {
  n = Shape (x)
  d = Gather (n, one)
  e = Mul (d, three)
  f = Unsqueeze (e, front)
  t = Concat <axis = 0> (minus, f)
  r = Reshape (x, t)
  w = Transpose <perm = [1, 0]> (m)
  u = Mul (w, half)
  z = MatMul (r, u)
  y = If (c) <
    then_branch = a () => (float[N,K] p) { k = Add (half, half) p = Mul (z, k) },
    else_branch = b () => (float[N,K] q) { q = Neg (z) }
  >
}"""
WEIGHTS = {
    "one": np.int64(1),
    "three": np.int64(3),
    "front": np.int64([0]),
    "minus": np.int64([-1]),
    "m": np.arange(24, dtype=np.float32).reshape(4, 6),
    "half": np.float32(0.5),
}
FEEDS = {"x": np.arange(12, dtype=np.float32).reshape(2, 2, 3), "c": np.array(True)}


def test_constant_subgraphs_and_known_dimensions_fold() -> None:
    model = check_pass(FoldConstants(), model_of(MODEL, WEIGHTS), FEEDS, golden="fold-constants", before=NAMED)
    left = [n.op_type for n in model.graph.all_nodes()]
    assert left == ["Shape", "Reshape", "MatMul", "If", "Mul", "Neg"], "Shape itself still knows no batch"


def test_the_result_is_the_runtimes() -> None:
    model = model_of(MODEL, WEIGHTS)
    run(model, *NAMED, FoldConstants())
    folded = constant(model.graph.initializers["u"])
    assert folded is not None
    np.testing.assert_array_equal(folded, WEIGHTS["m"].T * np.float32(0.5))


def test_an_unknown_batch_does_not_fold() -> None:
    model = model_of(
        '<ir_version: 8, opset_import: ["": 17]>'
        "g (float[N,2] x) => (int64 y) { s = Shape (x) b = Gather (s, zero) y = Add (b, b) }",
        {"zero": np.int64(0)},
    )
    run(model, *NAMED)
    assert not run(model, *NAMED, FoldConstants())[-1].modified


def test_large_results_are_not_stored() -> None:
    text = (
        '<ir_version: 8, opset_import: ["": 17]>'
        "g (float[1000] x) => (float[1000,1000] y) { big = Expand (one, shape) y = Mul (x, big) }"
    )
    weights = {"one": np.float32([1]), "shape": np.int64([1000, 1000])}
    model = model_of(text, weights)
    assert not run(model, *NAMED, FoldConstants(limit=1 << 20))[-1].modified
    assert run(model, *NAMED, FoldConstants(limit=1 << 22))[-1].modified


def test_random_numbers_are_not_constants() -> None:
    model = model_of(
        '<ir_version: 8, opset_import: ["": 17]>'
        "g (float[2] x) => (float[2] y) { r = RandomNormalLike (one) y = Add (x, r) }",
        {"one": np.ones(2, np.float32)},
    )
    assert not run(model, *NAMED, FoldConstants())[-1].modified


def test_an_if_whose_condition_is_constant_gives_way_to_its_branch() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[2] x) => (float[2] y, float[2] z) {
      h = If (no) <
        then_branch = a () => (float[2] p) { p = Exp (x) },
        else_branch = b () => (float[2] q) { k = Relu (x) q = Mul (k, w) }
      >
      y = Neg (h)
      z = If (no) <
        then_branch = c () => (float[2] r) { r = Exp (x) },
        else_branch = d () => (float[2] s) { s = Identity (x) }
      >
    }"""
    model = model_of(text, {"no": np.array(False), "w": np.float32([2, 3])})
    check_pass(FoldConstants(), model, {"x": np.float32([1, -1])}, golden="fold-constants-if", before=NAMED)
    assert "If" not in print_model(model)
    assert [v.name for v in model.graph.outputs] == ["y", "z"]
