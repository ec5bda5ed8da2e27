"""Proof of dispatch on hand-made graphs: where the runtime fuses, and where it silently does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompile.compiler.plan import Form, QuantPlan, Unit
from qcompile.compiler.targets import target_named
from qcompile.compiler.verification.dispatch import Dispatch, prove_dispatch
from qcompile.runtime import engine_builder
from qcompile.runtime.providers import why_not_loaded
from tests.verification.qdq_models import Builder, convolutions, linear_with_float_bias

CPU = target_named("cpu")


def _prove(model: onnx.ModelProto, folder: Path, plan: QuantPlan | None = None, target: str = "cpu") -> Dispatch:
    onnx.save(model, folder / "model.onnx")
    return prove_dispatch(folder / "model.onnx", target_named(target), plan)


def test_a_chain_of_convolutions_runs_on_codes(tmp_path: Path) -> None:
    found = _prove(convolutions(), tmp_path)
    assert found.proof.passed
    assert [(u.node, u.kernel) for u in found.units] == [("n_c1", "QLinearConv"), ("n_c2", "QLinearConv")]
    assert found.kept_float == []


def test_a_matmul_with_float_output_runs_on_codes(tmp_path: Path) -> None:
    found = _prove(linear_with_float_bias(bias=False), tmp_path)
    assert found.proof.passed
    assert [u.kernel for u in found.units] == ["MatMulIntegerToFloat"]


def test_the_float_bias_trap_is_reported_as_float(tmp_path: Path) -> None:
    """MatMul + Add becomes a float Gemm, although both inputs are dequantized."""
    found = _prove(linear_with_float_bias(), tmp_path)
    assert found.proof.passed is False
    [unit] = found.units
    assert (unit.node, unit.proved, unit.kernel) == ("n_product", False, "Gemm")
    assert "float" in unit.reason
    assert "n_product" in found.proof.detail


def test_a_chain_that_does_not_fuse_is_not_proved_by_its_conversions(tmp_path: Path) -> None:
    """With a zero point above the lowest code, ReLU cannot be left to the range and the convolution stays float."""
    b = Builder()
    b.weight("W", np.random.default_rng(0).standard_normal((8, 4, 3, 3)), 0)
    b.node("Conv", [b.convert("x"), "W_dequantized"], "c")
    b.node("Relu", ["c"], "r")
    b.node("Softmax", [b.convert("r", zero=128)], "y", axis=1)
    found = _prove(b.model({"x": [1, 4, 8, 8]}, ["y"]), tmp_path)
    assert [(u.node, u.proved) for u in found.units] == [("n_c", False)]


def test_a_plan_that_promises_more_than_the_artifact_holds(tmp_path: Path) -> None:
    b = Builder()
    weight = b.constant("W", np.ones((16, 8), np.float32))
    b.node("MatMul", ["x", weight], "y")
    plan = QuantPlan(units={"n_y": Unit("n_y", "MatMul", Form.INPUTS, ("x", None), "y", weight="W")})
    found = _prove(b.model({"x": [4, 16]}, ["y"]), tmp_path, plan)
    assert found.proof.passed is False
    assert [(u.node, u.kernel, u.proved) for u in found.units] == [("n_y", "MatMul", False)]


def test_heavy_float_nodes_are_named_with_their_reason(tmp_path: Path) -> None:
    b = Builder()
    weight = b.constant("W", np.ones((16, 8), np.float32))
    b.node("MatMul", ["x", weight], "p")
    b.node("Relu", ["p"], "r")
    b.node("Conv", ["image", b.constant("K", np.ones((8, 4, 3, 3), np.float32))], "c")
    b.node("Relu", ["c"], "y")
    model = b.model({"x": [4, 16], "image": [1, 4, 8, 8]}, ["r", "y"])
    plan = QuantPlan(kept_float={"n_p": "kept float by the option keep-float"})
    found = _prove(model, tmp_path, plan)
    reasons = {record.node: (record.op_type, record.reason) for record in found.kept_float}
    assert reasons["n_p"] == ("MatMul", "kept float by the option keep-float")
    assert reasons["n_c"] == ("Conv", "it is not between Q/DQ")
    assert found.proof.passed is None


def test_a_unit_inside_a_branch_is_found(tmp_path: Path) -> None:
    b = Builder()
    b.weight("W", np.random.default_rng(0).standard_normal((16, 8)), 1)
    b.node("MatMul", [b.convert("x"), "W_dequantized"], "product")
    inner = b.model({"x": [4, 16]}, ["product"]).graph
    del inner.input[:]
    other = onnx.helper.make_graph(
        [onnx.helper.make_node("Expand", ["zero", "shape"], ["nothing"], name="n_nothing")],
        "else",
        [],
        [onnx.helper.make_tensor_value_info("nothing", onnx.TensorProto.FLOAT, None)],
        [
            onnx.numpy_helper.from_array(np.float32(0), "zero"),
            onnx.numpy_helper.from_array(np.array([4, 8]), "shape"),
        ],
    )
    node = onnx.helper.make_node("If", ["flag"], ["y"], name="n_if", then_branch=inner, else_branch=other)
    graph = onnx.helper.make_graph(
        [node],
        "outer",
        [
            onnx.helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4, 16]),
        ],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4, 8])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    found = _prove(model, tmp_path)
    assert [(u.node, u.kernel, u.proved) for u in found.units] == [("n_product", "MatMulIntegerToFloat", True)]


def test_a_provider_that_is_not_here_is_neither_proof_nor_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = why_not_loaded("TensorrtExecutionProvider")
    monkeypatch.setattr(engine_builder, "_MODULE", "no_such_module")
    found = _prove(linear_with_float_bias(bias=False), tmp_path, target="tensorrt")
    if reason:
        assert found.proof.passed is None
        assert reason in found.proof.detail
        assert "pip install tensorrt-rtx" in found.proof.detail
        assert all(unit.proved is None for unit in found.units)


def test_a_model_that_does_not_load_is_a_failed_proof(tmp_path: Path) -> None:
    b = Builder()
    b.node("NoSuchOperator", ["x"], "y", "com.microsoft")
    found = _prove(b.model({"x": [4]}, ["y"]), tmp_path)
    assert found.proof.passed is False
    assert "NoSuchOperator" in found.proof.detail
