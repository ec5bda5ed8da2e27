"""Times of small models on the CPU: what is counted apart, and what cannot be timed."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from qcompile.errors import ModelError, TargetError
from qcompile.runtime.kernel_times import run_time
from qcompile.runtime.machine import device_name
from qcompile.runtime.providers import CPU, CUDA


def model(text: str) -> bytes:
    data: bytes = onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 21]> ' + text).SerializeToString()
    return data


def convolution() -> bytes:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [16, 16, 3, 3], [0.5] * 2304)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 30, 30])],
        [weight],
    )
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    ).SerializeToString()
    return data


def test_changes_of_layout_are_told_apart() -> None:
    apart, whole = run_time(convolution(), CPU, layouts=True), run_time(convolution(), CPU, layouts=False)
    assert apart.kernels > 0
    assert apart.layout > 0, "a convolution of 16 channels is reordered before and after"
    assert whole.layout == 0


def test_more_work_takes_longer() -> None:
    few, many = (
        run_time(
            model(f"g (float[{n},{n}] a, float[{n},{n}] b) => (float[{n},{n}] y) {{ y = MatMul (a, b) }}"), CPU, False
        )
        for n in (8, 256)
    )
    assert many.kernels > few.kernels > 0


@pytest.mark.parametrize("kind", ["float16", "uint8", "int8", "int64", "int32", "bool"])
def test_values_of_every_type_are_made(kind: str) -> None:
    assert run_time(model(f"g ({kind}[2,3] x) => ({kind}[3,2] y) {{ y = Transpose (x) }}"), CPU, False).kernels > 0


def test_what_does_not_run_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="refuses the model"):
        run_time(model("g (float[2] x) => (float[2] y) { y = NoSuchOperator (x) }"), CPU, False)
    with pytest.raises(ModelError, match="could not run"):
        run_time(
            model("g (float[6] x, int64[1] s) => (float[3] y) { y = Expand (x, s) z = Reshape (x, s) }"), CPU, False
        )
    with pytest.raises(ModelError, match="no operation with values of type"):
        run_time(model("g (string[2] x) => (string[2] y) { y = Identity (x) }"), CPU, False)


def test_the_machine_has_a_name() -> None:
    assert device_name(CPU).endswith(" cores")
    with pytest.raises(TargetError, match="nothing to take times on: CUDAExecutionProvider does not load, no NVIDIA"):
        device_name(CUDA)
