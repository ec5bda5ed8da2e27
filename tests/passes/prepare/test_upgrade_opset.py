from __future__ import annotations

import numpy as np
import pytest

from qcompile.compiler.graph import opset
from qcompile.compiler.provenance import sources
from qcompile.errors import ModelError
from qcompile.passes.prepare.upgrade_opset import UpgradeOpset
from tests.passes.harness import check_pass, model_of, run

MODEL = """<ir_version: 6, opset_import: ["": 11]>
g (float[2,3] x, bool c) => (float[2] y) {
  m = MatMul (x, big)
  y = If (c) <
    then_branch = t () => (float[2] p) { p = ReduceSum <axes = [1], keepdims = 0> (m) },
    else_branch = e () => (float[2] q) {
      u = Unsqueeze <axes = [0]> (m)
      s = Squeeze <axes = [0]> (u)
      q = ReduceMean <axes = [1], keepdims = 0> (s)
    }
  >
}"""


@pytest.mark.parametrize("taken", [True, False])
def test_operators_and_bodies_are_converted(taken: bool) -> None:
    big = np.random.default_rng(0).standard_normal((3, 400)).astype(np.float32)
    model = model_of(MODEL, {"big": big})
    for i, node in enumerate(model.graph.all_nodes()):
        node.name = f"node{i}"
    feeds = {"x": np.float32([[1, 2, 3], [4, 5, 7]]), "c": np.array(taken)}
    check_pass(UpgradeOpset(), model, feeds, golden="upgrade-opset")
    assert opset(model) == 17
    assert model.ir_version == 8
    assert [v.name for v in model.graph.inputs] == ["x", "c"], "weights did not become inputs"
    assert all(sources(n) for n in model.graph.all_nodes()), "the converter drops metadata; we put it back"


def test_new_enough_models_are_left_alone() -> None:
    model = model_of('<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (float[2] y) { y = Relu (x) }')
    assert not run(model, UpgradeOpset())[0].modified
    assert opset(model) == 21


def test_an_operator_without_an_adapter_is_a_precise_error() -> None:
    model = model_of(
        '<ir_version: 4, opset_import: ["": 8]>'
        "g (float[1,1,2,2] x, float[4] s) => (float[1,1,4,4] y) { y = Upsample <scales = [1.0, 1.0, 2.0, 2.0]> (x) }"
    )
    model.graph[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="from opset 8 to 17") as error:
        run(model, UpgradeOpset())
    assert "export it again" in error.value.hint


def test_functions_come_first() -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["": 13, "local": 1]>
        g (float[2] x) => (float[2] y) { y = local.f (x) }
        <domain: "local", opset_import: ["": 13]> f (v) => (w) { w = Relu (v) }"""
    )
    with pytest.raises(ModelError, match="functions") as error:
        run(model, UpgradeOpset())
    assert "inline-functions" in error.value.hint
