"""What a run does: operations in closed form, and the graph as ONNX Runtime's profiler shows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompile.compiler.operators import catalogue
from qcompile.errors import DataError
from qcompile.runtime.benchmark.profile import NodeRun, Tensor
from qcompile.runtime.benchmark.work import count, work_of
from qcompile.runtime.providers import CPU
from tests.verification.qdq_models import convolutions

F, U8, I8, I64 = "float", "uint8", "int8", "int64"


def node(op_type: str, inputs: Sequence[tuple[str, tuple[int, ...]]], *outputs: tuple[int, ...]) -> NodeRun:
    tensors = tuple(Tensor(dtype, shape) for dtype, shape in inputs)
    return NodeRun("n", op_type, 0.0, tensors, tuple(Tensor(F, shape) for shape in outputs), 100)


@pytest.mark.parametrize(
    ("ran", "multiply_adds", "kind"),
    [
        (node("MatMul", [(F, (5, 2, 3)), (F, (3, 4))], (5, 2, 4)), 5 * 2 * 3 * 4, "float32"),
        (node("MatMul", [(F, (3,)), (F, (3, 4))], (4,)), 3 * 4, "float32"),
        (node("MatMul", [("float16", (2, 3)), ("float16", (3, 4))], (2, 4)), 2 * 3 * 4, "float16"),
        (node("Gemm", [(F, (3, 2)), (F, (3, 4)), (F, (4,))], (2, 4)), 2 * 3 * 4, "float32"),  # transA
        (node("FusedMatMul", [(F, (7, 3, 2)), (F, (7, 4, 3))], (7, 2, 4)), 7 * 2 * 3 * 4, "float32"),
        (node("MatMulNBits", [(F, (1, 2, 64)), (U8, (8, 2, 16)), (F, (16,))], (1, 2, 8)), 2 * 64 * 8, "float32"),
        (node("MatMulIntegerToFloat", [(U8, (2, 3)), (I8, (3, 4)), (F, ()), (F, (4,))], (2, 4)), 24, "int8"),
        (node("DynamicQuantizeMatMul", [(F, (2, 3)), (I8, (3, 4)), (F, (4,))], (2, 4)), 24, "int8"),
        (node("QLinearMatMul", [(U8, (2, 3)), (F, ()), (U8, ()), (I8, (3, 4))], (2, 4)), 24, "int8"),
        (node("LinearW8A8BiasGelu", [(F, (2, 3)), (F, ()), (I8, (4, 3))], (2, 4)), 24, "int8"),
        (node("LinearE4M3", [("float8e4m3fn", (2, 3)), ("float8e4m3fn", (4, 3))], (2, 4)), 24, "float8"),
        (node("Conv", [(F, (1, 6, 9, 9)), (F, (8, 3, 3, 3))], (1, 8, 7, 7)), 8 * 49 * 27, "float32"),
        (node("QLinearConv", [(U8, (1, 9, 9, 6)), (F, ()), (U8, ()), (I8, (8, 3, 3, 3))], (1, 7, 7, 8)), 10584, "int8"),
        (node("ConvTranspose", [(F, (1, 6, 5, 5)), (F, (6, 2, 3, 3))], (1, 2, 7, 7)), 6 * 25 * 18, "float32"),
        (node("LSTM", [(F, (7, 2, 3)), (F, (1, 16, 3)), (F, (1, 16, 4))], (7, 1, 2, 4)), 14 * (48 + 64), "float32"),
        (node("Attention", [(F, (2, 5, 8)), (F, (8, 24)), (F, (24,))], (2, 5, 8)), 10 * 8 * 24 + 2 * 80 * 5, "float32"),
        (node("MultiHeadAttention", [(F, (2, 5, 8)), (F, (2, 7, 8)), (F, (2, 7, 8))], (2, 5, 8)), 2 * 80 * 7, F),
        (
            node("GroupQueryAttention", [(F, (2, 1, 8)), (F, (2, 1, 4)), (F, (2, 1, 4))], (2, 1, 8), (2, 1, 9, 4)),
            288,
            F,
        ),
    ],
    ids=lambda value: value.op_type if isinstance(value, NodeRun) else "",
)
def test_operations(ran: NodeRun, multiply_adds: int, kind: str) -> None:
    assert count([ran]).operations == {"float32" if kind == F else kind: 2 * multiply_adds}


def test_what_does_not_multiply() -> None:
    work = count([node("Relu", [(F, (9,))], (9,))])
    assert (work.operations, work.total) == ({}, 0)


def test_bytes() -> None:
    assert count([node("Relu", [(F, (9,))], (9,))]).bytes == 100
    assert count([node("Reshape", [(F, (9,)), (I64, (1,))], (9,))]).bytes == 0
    assert count([node("Gather", [(F, (1000, 8)), (I64, (2,))], (2, 8))]).bytes == 2 * 4 * 16


def test_our_operators_for_linear_layers_are_known_by_name() -> None:
    linear = {name for name in catalogue() if name.startswith("Linear")}
    assert linear
    assert not any("Linear" in name for name in catalogue().keys() - linear)


def test_the_profile_shows_weights_and_codes(tmp_path: Path) -> None:
    onnx.save(convolutions(), tmp_path / "m.onnx")
    sizes = [(1, 4, 8, 8)] * 2
    first, second = work_of(tmp_path / "m.onnx", [{"x": np.zeros(size, np.float32)} for size in sizes], CPU)
    assert first == second
    assert first.operations == {"int8": 2 * 64 * (8 * 4 * 9 + 8 * 8)}
    assert first.bytes > 8 * 4 * 9


def test_a_model_that_does_not_run_is_a_clear_error(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constant = numpy_helper.from_array(np.ones(3, np.float32), "c")
    graph = helper.make_graph([helper.make_node("Add", ["x", "c"], ["y"])], "g", [x], [y], [constant])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(DataError, match="could not run"):
        work_of(tmp_path / "m.onnx", [{"x": np.ones(2, np.float32)}], CPU)
