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
FOR_COPIES = NUMBERS | {
    "second": np.int64([1]),
    "twice": np.int64([2]),
    "minus": np.int64([-1, -1, -1, -1]),
    "ones": np.int64([1, 1, 1, 1]),
    "twelve": np.int64([12]),
}
FEEDS = {"x": np.random.default_rng(0).standard_normal((2, 5, 12)).astype(np.float32)}
DIMENSIONS = (
    """s = Shape (x) b = Gather (s, zero) l = Gather (s, one) b1 = Unsqueeze (b, first) l1 = Unsqueeze (l, first) """
)


def graph(nodes: str, rank: str = "B,L,3,4", declared: str = "B,L,12") -> str:
    return f"{HEAD} g (float[{declared}] x) => (float[{rank}] y) {{ {DIMENSIONS}{nodes} }}"


def shape_of(model: ir.Model, op_type: str = "Reshape") -> list[int]:
    [reshape] = [n for n in model.graph if n.op_type == op_type]
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


COPIES = "u = Unsqueeze (x, second) t = Concat <axis = 0> (b1, twice, l1, twelve) "


@pytest.mark.parametrize("chosen", ["", "r = Reshape (t, flat) q = Equal (r, minus) w = Where (q, ones, r) "])
def test_copies_keep_what_x_has(chosen: str) -> None:
    """As torch writes `x[:, None].expand(b, 2, l, 12).reshape(b, -1, 12)`."""
    text = graph(
        f"{COPIES}{chosen}e = Expand (u, {'w' if chosen else 't'}) s3 = Concat <axis = 0> (b1, flat, twelve) "
        "y = Reshape (e, s3)",
        "B,M,12",
    )
    model = check_pass(ConstantReshapes(), model_of(text, FOR_COPIES), FEEDS, before=NAMED)
    assert [n.op_type for n in model.graph] == ["Unsqueeze", "Expand", "Reshape"]
    assert shape_of(model, "Expand") == [1, 2, 1, 12]
    assert shape_of(model) == [0, -1, 12]
    [expand] = [n for n in model.graph if n.op_type == "Expand"]
    assert expand.outputs[0].shape == ir.Shape(["B", 2, "L", 12])


@pytest.mark.parametrize(
    "nodes",
    [
        "u = Unsqueeze (x, second) t = Concat <axis = 0> (b1, l1, l1, twelve) y = Expand (u, t)",
        "t = Concat <axis = 0> (twice, b1, l1, twelve) y = Expand (x, t)",
        "u = Unsqueeze (x, second) t = Concat <axis = 0> (b1, flat, l1, twelve) y = Expand (u, t)",
        f"{COPIES}q = Equal (t, ones) w = Where (q, ones, t) y = Expand (u, w)",
    ],
)
def test_copies_that_stay_computed(nodes: str) -> None:
    assert not run(model_of(graph(nodes, "P,Q,R,12"), FOR_COPIES), *NAMED, ConstantReshapes())[-1].modified


def test_a_question_mark_is_no_name() -> None:
    """Two unknown dimensions may both be called so."""
    text = graph("t = Concat <axis = 0> (b1, l1, heads, size) y = Reshape (x, t)", "P,Q,3,4")
    model = model_of(text, NUMBERS)
    model.graph.inputs[0].shape = ir.Shape(["?", "?", 12])
    assert not run(model, *NAMED, ConstantReshapes())[-1].modified
