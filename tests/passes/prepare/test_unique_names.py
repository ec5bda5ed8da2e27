from __future__ import annotations

import numpy as np

from qcompile.passes.prepare.unique_names import UniqueNames
from tests.passes.harness import check_pass, model_of, run

MODEL = """<ir_version: 8, opset_import: ["": 17]>
g (float[2] x, bool c) => (float[2] y) {
  h = Relu (x)
  y = If (c) <
    then_branch = t () => (float[2] p) { a = Neg (h) p = Exp (a) },
    else_branch = e () => (float[2] p) { a = Abs (h) y = Neg (a) p = Neg (y) }
  >
}"""


def test_names_are_unique_over_branches() -> None:
    model = model_of(MODEL)
    branches = model.graph[-1].attributes
    for branch in ("then_branch", "else_branch"):
        branches[branch].as_graph()[0].name = "same"
    check_pass(UniqueNames(), model, {"x": np.float32([1, 2]), "c": np.array(False)}, golden="unique-names")
    nodes = [n.name for n in model.graph.all_nodes()]
    values = [v.name for n in model.graph.all_nodes() for v in n.outputs] + ["x", "c"]
    assert len(set(nodes)) == len(nodes)
    assert len(set(values)) == len(values)
    assert [v.name for v in model.graph.outputs] == ["y"]


def test_unique_names_stay() -> None:
    model = model_of('<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Relu (x) }')
    run(model, UniqueNames())
    assert not run(model, UniqueNames())[0].modified


def test_an_output_that_is_not_computed_stays_nameless() -> None:
    model = model_of(
        '<ir_version: 8, opset_import: ["": 17]>'
        "g (float[3,1,2] x, float[1,8,2] w, float[1,8,2] r) => (float[1,1,2] h)"
        "{ , h = LSTM <hidden_size = 2> (x, w, r) }"
    )
    run(model, UniqueNames())
    assert model.graph[0].outputs[0].name == ""
