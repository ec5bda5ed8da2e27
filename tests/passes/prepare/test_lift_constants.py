from __future__ import annotations

import numpy as np

from qcompile.compiler.printer import print_model
from qcompile.passes.prepare.lift_constants import LiftConstants
from tests.passes.harness import check_pass, context, model_of, run

MODEL = """<ir_version: 8, opset_import: ["": 17]>
g (float[2] x, bool c) => (float[2] y, float z, int64[2] w) {
  three = Constant <value_float = 3.0> ()
  z = Constant <value_float = 4.0> ()
  w = Constant <value_ints = [1, 2]> ()
  y = If (c) <
    then_branch = t () => (float[2] p) { two = Constant <value = float[2] {2.0, 2.5}> () p = Mul (x, two) },
    else_branch = e () => (float[2] q) { q = Add (x, three) }
  >
}"""


def test_constants_become_initializers_in_bodies_too() -> None:
    model = check_pass(
        LiftConstants(), model_of(MODEL), {"x": np.float32([1, 2]), "c": np.array(True)}, golden="lift-constants"
    )
    assert all(n.op_type != "Constant" for n in model.graph.all_nodes())
    assert [v.name for v in model.graph.outputs] == ["y", "z", "w"]


def test_no_constant_no_change() -> None:
    model = model_of('<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Relu (x) }')
    assert not run(model, LiftConstants())[0].modified


def test_initializers_listed_as_inputs_stop_being_inputs() -> None:
    text = '<ir_version: {}, opset_import: ["": 17]> g (float[2] x, float[2] w) => (float[2] y) {{ y = Mul (x, w) }}'
    for ir_version, told in ((3, False), (8, True)):
        model, on = model_of(text.format(ir_version), {"w": np.ones(2, np.float32)}), context()
        assert run(model, LiftConstants(), on=on)[0].modified
        assert [v.name for v in model.graph.inputs] == ["x"]
        assert "w: f32[2] [1, 1]" in print_model(model)
        assert any("w" in n for n in on.notices) == told, "only since IR version 4 could a user override it"
