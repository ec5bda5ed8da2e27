from __future__ import annotations

import numpy as np
import pytest

from qcompile.compiler.provenance import sources
from qcompile.errors import ModelError
from qcompile.passes.prepare.inline_functions import InlineFunctions
from tests.passes.harness import check_pass, model_of, run

MODEL = """<ir_version: 8, opset_import: ["": 17, "local": 1]>
g (float[2] x, bool c) => (float[2] y) {
  a = local.twice (x)
  b = local.twice (a)
  y = If (c) <
    then_branch = t () => (float[2] p) { p = local.inner (b) },
    else_branch = e () => (float[2] q) { q = Neg (b) }
  >
}
<domain: "local", opset_import: ["": 17, "local": 1]>
twice (v) => (w) { u = Add (v, v) w = local.inner (u) }
<domain: "local", opset_import: ["": 17]>
inner (v) => (w) { w = Relu (v) }
"""


def test_functions_are_inlined_and_stand_for_their_call() -> None:
    model = model_of(MODEL)
    calls = [n for n in model.graph if n.op_type == "twice"]
    for node, name in zip(calls, ("first", "second"), strict=True):
        node.name = name
    check_pass(InlineFunctions(), model, {"x": np.float32([1, 2]), "c": np.array(True)}, golden="inline-functions")
    assert not model.functions
    assert [sources(n) for n in model.graph][:4] == [["first"], ["first"], ["second"], ["second"]]


def test_nothing_to_inline() -> None:
    model = model_of('<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Relu (x) }')
    assert not run(model, InlineFunctions())[0].modified


def test_functions_that_disagree_about_the_opset_are_an_error() -> None:
    model = model_of(MODEL)
    next(iter(model.functions.values())).opset_imports[""] = 15
    with pytest.raises(ModelError, match="cannot be inlined"):
        run(model, InlineFunctions())
