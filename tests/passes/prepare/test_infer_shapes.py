from __future__ import annotations

import numpy as np

from qcompile.compiler.printer import print_model
from qcompile.passes.prepare.infer_shapes import InferShapes
from tests.passes.harness import NAMED, check_pass, context, model_of, run

MODEL = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,3,8,8] x, bool c) => (float[A,B,C] y) {
  k = Conv <pads = [1,1,1,1]> (x, w)
  s = Shape (k)
  b = Gather (s, zero)
  d = Unsqueeze (b, front)
  t = Concat <axis = 0> (d, rest)
  r = Reshape (k, t)
  y = If (c) <
    then_branch = a () => (float[A,B,C] p) { p = Relu (r) },
    else_branch = e () => (float[A,B,C] q) { m = Neg (r) q = Exp (m) }
  >
}"""
WEIGHTS = {
    "w": np.ones((4, 3, 3, 3), np.float32),
    "zero": np.int64(0),
    "front": np.int64([0]),
    "rest": np.int64([4, 64]),
}


def test_shapes_are_known_in_bodies_and_through_shape_arithmetic() -> None:
    model = model_of(MODEL, WEIGHTS)
    feeds = {"x": np.ones((2, 3, 8, 8), np.float32), "c": np.array(True)}
    check_pass(InferShapes(), model, feeds, golden="infer-shapes", before=NAMED[:2])
    text = print_model(model)
    assert "r: f32[N,4,64]" in text
    assert "m: f32[N,4,64]" in text


def test_unknown_shapes_are_named() -> None:
    model = model_of(
        '<ir_version: 8, opset_import: ["": 17]>'
        "g (float[4] x, int64[K] s) => (float[A,B] y) { q = Reshape (x, s) r = Abs (q) y = Relu (r) }"
    )
    on = context()
    run(model, *NAMED, on=on)
    assert on.notices == ["the shape of 2 values is unknown: q, r"]


def test_known_dimensions_are_not_lost() -> None:
    model = model_of('<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[M] y) { y = Relu (x) }')
    run(model, *NAMED)
    assert "y: f32[M]" in print_model(model)


def test_an_unknown_size_that_broadcasts_with_a_name_takes_the_name() -> None:
    """As position embeddings, cut to the length of the input, in which inference has lost that length."""
    model = model_of(
        """<ir_version: 8, opset_import: ["": 17]>
        g (int64[batch,length] ids, float[batch,length,4] x, float[batch,1,other] z) => (float[A,B,C] y) {
          s = Shape (ids)
          n = Slice (s, one, two, zero)
          p = Slice (positions, zero, n, zero)
          h = Add (x, p)
          r = Mul (h, h)
          k = Slice (r, zero, n, one)
          y = Add (k, z)
        }""",
        {"positions": np.ones((9, 4), np.float32), **{n: np.int64([i]) for i, n in enumerate(("zero", "one", "two"))}},
    )
    run(model, *NAMED)
    text = print_model(model)
    assert "h: f32[batch,length,4]" in text
    assert "r: f32[batch,length,4]" in text
    assert "p: f32[batch" not in text, "one of two sizes that only broadcast stays unknown"


def test_a_slice_whose_bounds_are_computed_leaves_the_other_axes_known() -> None:
    """As queries and keys cut from one product, in a graph whose bounds are folded only later."""
    model = model_of(
        """<ir_version: 8, opset_import: ["": 17]> g (float[batch,5,8] x) => (float[A,5,5] y) {
          end = Mul (two, two)
          q = Slice (x, zero, end, two)
          k = Slice (x, zero, end, two)
          t = Transpose <perm = [0, 2, 1]> (k)
          p = MatMul (q, t)
          y = Softmax <axis = -1> (p)
        }""",
        {"zero": np.int64([0]), "two": np.int64([2])},
    )
    run(model, *NAMED)
    text = print_model(model)
    assert "q: f32[batch,5," in text
    assert "p: f32[batch,5,5]" in text


def test_a_reshape_to_a_shape_that_was_put_together_has_its_names() -> None:
    """As the heads of an attention, joined to rows of the length that entered it."""
    model = model_of(
        """<ir_version: 8, opset_import: ["": 17]> g (float[batch,length,8] x, float[n] flat) => (float[A,B,8] y) {
          s = Shape (x)
          lead = Slice (s, zero, two)
          wanted = Concat <axis = 0> (lead, eight)
          y = Reshape (flat, wanted)
          h = Reshape (flat, wanted)
          sum = Add (x, h)
          y2 = Relu (sum)
        }""",
        {"zero": np.int64([0]), "two": np.int64([2]), "eight": np.int64([8])},
    )
    run(model, *NAMED)
    assert "h: f32[batch,length,8]" in print_model(model)
