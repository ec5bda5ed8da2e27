from __future__ import annotations

import numpy as np
import pytest

from qcompile.passes.prepare.remove_dead import RemoveDead
from tests.passes.harness import NAMED, check_pass, model_of, run

MODEL = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,4] x, bool c) => (float[N,4] y, float[N,4] z) {
  a = Identity (x)
  b = Dropout (a)
  d = Cast <to = 1> (b)
  r = Reshape (d, same)
  t = Transpose <perm = [0, 1]> (r)
  q = Concat <axis = 1> (t)
  dead = Exp (x)
  deader = Neg (dead)
  k = Relu (q)
  z = Identity (k)
  y = If (c) <
    then_branch = th () => (float[N,4] p) { i = Identity (q) lost = Exp (i) p = Neg (i) },
    else_branch = el () => (float[N,4] s) { s = Identity (q) }
  >
}"""
WEIGHTS = {"same": np.int64([-1, 4]), "unused": np.ones(3, np.float32)}


def test_dead_and_idle_nodes_go() -> None:
    feeds = {"x": np.ones((2, 4), np.float32), "c": np.array(True)}
    model = check_pass(RemoveDead(), model_of(MODEL, WEIGHTS), feeds, golden="remove-dead", before=NAMED)
    assert [n.op_type for n in model.graph.all_nodes()] == ["Relu", "If", "Neg", "Identity"]
    assert "unused" not in model.graph.initializers


@pytest.mark.parametrize(
    ("kind", "node"),
    [
        ("float16[2,2]", "y = Cast <to = 10> (x)"),
        ("float[2,2]", "y = Transpose <perm = [1, 0]> (x)"),
        ("float[2,2]", "y = Dropout (x, ratio, yes)"),
        ("float[1,4]", "y = Reshape (x, wide)"),
        ("float[4,2]", "y = Concat <axis = 0> (x, x)"),
        ("float[2,2]", "y = Relu (x)"),
    ],
)
def test_nodes_that_do_something_stay(kind: str, node: str) -> None:
    weights = {"ratio": np.float32(0.5), "yes": np.array(True), "wide": np.int64([1, 4])}
    model = model_of(f'<ir_version: 8, opset_import: ["": 17]> g (float[2,2] x) => ({kind} y) {{ {node} }}', weights)
    run(model, *NAMED, RemoveDead())
    assert len(list(model.graph)) == 1


def test_outputs_that_are_inputs_keep_their_identity() -> None:
    model = model_of('<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Identity (x) }')
    assert not run(model, *NAMED, RemoveDead())[-1].modified
