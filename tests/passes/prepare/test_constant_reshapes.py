from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.passes.prepare.constant_reshapes import ConstantReshapes
from tests.passes.harness import NAMED, check_pass, model_of, run

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
NUMBERS = {
    "zero": np.int64(0),
    "one": np.int64(1),
    "first": np.int64([0]),
    "heads": np.int64([3]),
    "size": np.int64([4]),
    "flat": np.int64([-1]),
    "nothing": np.int64([0]),
}
FEEDS = {"x": np.random.default_rng(0).standard_normal((2, 5, 12)).astype(np.float32)}
DIMENSIONS = (
    """s = Shape (x) b = Gather (s, zero) l = Gather (s, one) b1 = Unsqueeze (b, first) l1 = Unsqueeze (l, first) """
)


def graph(nodes: str, rank: str = "B,L,3,4", declared: str = "B,L,12") -> str:
    return f"{HEAD} g (float[{declared}] x) => (float[{rank}] y) {{ {DIMENSIONS}{nodes} }}"


def shape_of(model: ir.Model) -> list[int]:
    [reshape] = [n for n in model.graph if n.op_type == "Reshape"]
    operand = reshape.inputs[1]
    assert operand is not None
    assert operand.const_value is not None
    return [int(i) for i in operand.const_value.numpy()]


def test_dimensions_at_their_place_are_copied() -> None:
    text = graph("r = Relu (x) t = Concat <axis = 0> (b1, l1, heads, size) y = Reshape (r, t)")
    model = check_pass(ConstantReshapes(), model_of(text, NUMBERS), FEEDS, golden="constant-reshapes", before=NAMED)
    assert shape_of(model) == [0, 0, 3, 4]
    assert [n.op_type for n in model.graph] == ["Relu", "Reshape"]


def test_one_that_moved_is_inferred() -> None:
    text = graph("p = Transpose <perm = [0, 2, 1]> (x) t = Concat <axis = 0> (b1, l1, heads, size) y = Reshape (p, t)")
    model = check_pass(ConstantReshapes(), model_of(text, NUMBERS), FEEDS, before=NAMED)
    assert shape_of(model) == [0, -1, 3, 4]


@pytest.mark.parametrize(
    ("nodes", "rank", "declared"),
    [
        (
            "p = Transpose <perm = [1, 0, 2]> (x) t = Concat <axis = 0> (b1, l1, heads, size) y = Reshape (p, t)",
            "P,Q,3,4",
            "B,L,12",
        ),
        ("t = Concat <axis = 0> (l1, b1, heads, size) y = Reshape (x, t)", "P,Q,3,4", "B,L,12"),
        ("t = Concat <axis = 0> (b1, flat, nothing) y = Reshape <allowzero = 0> (x, t)", "P,Q,R", "B,L,12"),
        ("t = Concat <axis = 0> (b1, l1, heads, size) y = Reshape <allowzero = 1> (x, t)", "P,Q,3,4", "B,L,12"),
    ],
)
def test_what_stays_computed(nodes: str, rank: str, declared: str) -> None:
    model = model_of(graph(nodes, rank, declared), NUMBERS)
    assert not run(model, *NAMED, ConstantReshapes())[-1].modified


def test_a_question_mark_is_no_name() -> None:
    """Two unknown dimensions may both be called so."""
    text = graph("t = Concat <axis = 0> (b1, l1, heads, size) y = Reshape (x, t)", "P,Q,3,4")
    model = model_of(text, NUMBERS)
    model.graph.inputs[0].shape = ir.Shape(["?", "?", 12])
    assert not run(model, *NAMED, ConstantReshapes())[-1].modified
