"""What does not fit is an error that names node and operand, and the process lives on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper

from tests.operators.library import options_with
from tests.operators.running import run, session

Array = np.ndarray[Any, Any]


def node(op_type: str, inputs: dict[str, int], output: tuple[str, int], **attributes: Any) -> onnx.ModelProto:
    """A model of one node "n" without the definition, so that only the kernel can answer; all shapes are free."""
    made = helper.make_node(op_type, list(inputs), [output[0], "x_scale"][: 2 if output[0] == "x_q" else 1], name="n")
    made.domain = "qcompile"
    made.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    values = [helper.make_tensor_value_info(name, dtype, None) for name, dtype in inputs.items()]
    outputs = [helper.make_tensor_value_info(*output, None)]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("qcompile", 1)]
    return helper.make_model(helper.make_graph([made], "g", values, outputs), opset_imports=opsets, ir_version=10)


def linear(**changes: Array) -> dict[str, Array]:
    """Operands of LinearW8A8Bias with M 2, N 8, K 16, some of them replaced."""
    good: dict[str, Array] = {
        "x_q": np.ones((2, 16), np.int8),
        "x_scale": np.ones((2, 1), np.float32),
        "w": np.ones((8, 16), np.int8),
        "w_scale": np.ones(8, np.float32),
        "bias": np.zeros(8, np.float32),
    }
    return good | changes


LINEAR = node(
    "LinearW8A8Bias",
    {"x_q": T.INT8, "x_scale": T.FLOAT, "w": T.INT8, "w_scale": T.FLOAT, "bias": T.FLOAT},
    ("y", T.FLOAT),
)


def refusal(library: Path, model: onnx.ModelProto, feeds: dict[str, Array]) -> str:
    """What the kernel says."""
    with pytest.raises(Exception, match="qcompile::") as error:
        session(model, options_with(library)).run(None, feeds)
    return str(error.value)


@pytest.mark.parametrize(
    ("operand", "value", "found"),
    [
        ("x_q", np.ones((), np.int8), "is a scalar"),
        ("x_q", np.ones((2, 0), np.int8), "[2, 0]: its rows are empty"),
        ("x_scale", np.ones((3, 1), np.float32), "[3, 1], wanted [2, 1]"),
        ("x_scale", np.ones(2, np.float32), "[2], wanted [2, 1]"),
        ("x_scale", np.ones((), np.float32), "[], wanted [2, 1]"),
        ("w", np.ones((8, 15), np.int8), "[8, 15], wanted [any, 16]"),
        ("w", np.ones((16,), np.int8), "[16], wanted [any, 16]"),
        ("w", np.ones((0, 16), np.int8), "has no rows"),
        ("w_scale", np.ones(1, np.float32), "[1], wanted [8]"),
        ("bias", np.ones((1, 8), np.float32), "[1, 8], wanted [8]"),
    ],
)
def test_a_shape_that_does_not_fit(operand: str, value: Array, found: str, library: Path) -> None:
    said = refusal(library, LINEAR, linear(**{operand: value}))
    assert "qcompile::LinearW8A8Bias node 'n'" in said
    assert f": {operand} " in said
    assert found in said


def test_the_session_goes_on_after_a_refusal(library: Path) -> None:
    on = session(LINEAR, options_with(library))
    with pytest.raises(Exception, match="x_scale"):
        run(on, linear(x_scale=np.ones((5, 1), np.float32)))
    np.testing.assert_array_equal(run(on, linear())["y"], 16)


def test_a_wrong_type_names_the_node(library: Path) -> None:
    wrong = node(
        "LinearW8A8Bias",
        {"x_q": T.UINT8, "x_scale": T.FLOAT, "w": T.INT8, "w_scale": T.FLOAT, "bias": T.FLOAT},
        ("y", T.FLOAT),
    )
    with pytest.raises(Exception, match=r"tensor\(uint8\).*\(x_q\).*\(n\)"):
        session(wrong, options_with(library))


def test_too_few_operands_and_unknown_operators(library: Path) -> None:
    with pytest.raises(Exception, match="LinearW8A8Bias"):
        session(node("LinearW8A8Bias", {"x_q": T.INT8}, ("y", T.FLOAT)), options_with(library))
    with pytest.raises(Exception, match="LinearW9A9"):
        session(node("LinearW9A9", {"x_q": T.INT8}, ("y", T.FLOAT)), options_with(library))


def test_norm_operands(library: Path) -> None:
    model = node("AddRMSNormQuant", {"x": T.FLOAT, "skip": T.FLOAT, "gamma": T.FLOAT}, ("y", T.FLOAT), epsilon=1e-5)
    model.graph.node[0].output.extend(["", "x_q", "x_scale"])
    x, gamma = np.ones((2, 16), np.float32), np.ones(16, np.float32)
    assert "skip has shape [16], wanted [2, 16]" in refusal(library, model, {"x": x, "skip": x[0], "gamma": gamma})
    assert "gamma has shape [8], wanted [16]" in refusal(library, model, {"x": x, "skip": x, "gamma": gamma[:8]})
    assert run(session(model, options_with(library)), {"x": x, "skip": x, "gamma": gamma})["y"].shape == (2, 16)


@pytest.mark.parametrize(
    ("attributes", "found"),
    [({}, "block_size is missing"), ({"block_size": 48}, "block_size is 48, wanted 32, 64 or 128")],
)
def test_attributes_are_checked_when_the_session_is_made(attributes: dict[str, int], found: str, library: Path) -> None:
    model = node("LinearW4A16", {"x": T.FLOAT, "w": T.INT4, "w_scale": T.FLOAT16}, ("y", T.FLOAT), **attributes)
    with pytest.raises(Exception, match="qcompile::LinearW4A16 node 'n'") as error:
        session(model, options_with(library))
    assert found in str(error.value)


@pytest.mark.parametrize(
    ("k", "blocks", "found"), [(80, 2, "x has rows of 80, no multiple of block_size 32"), (64, 3, "w_scale has shape")]
)
def test_block_sizes_must_fit(k: int, blocks: int, found: str, library: Path) -> None:
    model = node("LinearW4A16", {"x": T.FLOAT, "w": T.INT4, "w_scale": T.FLOAT16}, ("y", T.FLOAT), block_size=32)
    weight = helper.make_tensor("w", T.INT4, (4, k), np.zeros(4 * k, np.int8))
    model.graph.initializer.append(weight)
    del model.graph.input[1]
    feeds: dict[str, Array] = {"x": np.ones((1, k), np.float32), "w_scale": np.ones((4, blocks), np.float16)}
    assert found in refusal(library, model, feeds)
