"""Time of single kernels in float and in int8: the costs in the table of the target `cpu`.

    python -m benchmarks.kernels

Each model holds one operator. The int8 side reads codes and, where the form says so, writes codes: what is timed is the
kernel, without the conversions. Times are ns for each multiply-accumulate (products) or element (the rest), one thread,
best of 40 runs, at sizes where fixed costs are small.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper, numpy_helper

from benchmarks.record import save, table

_RUNS = 40
_SCALE, _ZERO, _WEIGHT_ZERO = "scale", "zero", "weight_zero"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Kernel:
    """One operator at one size.

    Attributes:
        inputs: shapes of the activations.
        weight: shape of the constant weight, at input 1.
        work: how many multiply-accumulates or elements one run has.
        unit: what `work` counts.
        moved: the operator moves codes without computing, so it needs no pair of Q and DQ.
    """

    op_type: str
    name: str
    inputs: tuple[Shape, ...]
    work: int
    unit: str = "element"
    weight: Shape | None = None
    attributes: tuple[tuple[str, Any], ...] = ()
    moved: bool = False


_IMAGE = (1, 64, 56, 56)
_ELEMENTS = 64 * 56 * 56
KERNELS = (
    Kernel("Conv", "1 x 1", (_IMAGE,), _ELEMENTS * 64, "MAC", (64, 64, 1, 1)),
    Kernel("Conv", "3 x 3", (_IMAGE,), _ELEMENTS * 576, "MAC", (64, 64, 3, 3), (("pads", [1, 1, 1, 1]),)),
    Kernel(
        "Conv", "depthwise", (_IMAGE,), _ELEMENTS * 9, "MAC", (64, 1, 3, 3), (("pads", [1, 1, 1, 1]), ("group", 64))
    ),
    Kernel("Conv", "image input", ((1, 3, 112, 112),), 32 * 110 * 110 * 27, "MAC", (32, 3, 3, 3)),
    Kernel("MatMul", "constant weight", ((128, 384),), 128 * 384 * 1536, "MAC", (384, 1536)),
    Kernel("Gemm", "", ((128, 384),), 128 * 384 * 1536, "MAC", (384, 1536)),
    Kernel("Add", "", (_IMAGE, _IMAGE), _ELEMENTS),
    Kernel("Mul", "", (_IMAGE, _IMAGE), _ELEMENTS),
    Kernel("Sigmoid", "", (_IMAGE,), _ELEMENTS),
    Kernel("LeakyRelu", "", (_IMAGE,), _ELEMENTS),
    Kernel("GlobalAveragePool", "", (_IMAGE,), _ELEMENTS, "input element"),
    Kernel(
        "AveragePool", "", (_IMAGE,), _ELEMENTS, "input element", None, (("kernel_shape", [2, 2]), ("strides", [2, 2]))
    ),
    Kernel("Concat", "", (_IMAGE, _IMAGE), 2 * _ELEMENTS, attributes=(("axis", 1),)),
    Kernel("Transpose", "", (_IMAGE,), _ELEMENTS, attributes=(("perm", [0, 2, 1, 3]),), moved=True),
    Kernel("QuantizeLinear", "", (_IMAGE,), _ELEMENTS),
    Kernel("DequantizeLinear", "", (_IMAGE,), _ELEMENTS),
)


def main() -> None:
    rows = []
    for kernel in KERNELS:
        conversion = kernel.op_type.endswith("Linear")
        row: dict[str, Any] = {"operator": kernel.op_type, "case": kernel.name, "unit": kernel.unit}
        row["float"] = None if conversion else best_time(_float_model(kernel)) / kernel.work
        row["int8"] = best_time(_conversion(kernel) if conversion else _int8_model(kernel)) / kernel.work
        rows.append(row)
        print("  ", row, flush=True)
    print(save("kernels", rows, {"threads": 1, "runs": _RUNS}))
    cells = [
        [r["operator"], r["case"], r["unit"], f"{r['float']:.4f}" if r["float"] else "", f"{r['int8']:.4f}"]
        for r in rows
    ]
    print(table(["Operator", "", "ns per", "float", "int8"], cells))


def best_time(model: ModelProto) -> float:
    """Shortest run in ns."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feed: dict[str, npt.NDArray[Any]] = {}
    for given in session.get_inputs():
        codes = rng.integers(0, 256, given.shape, np.uint8)
        feed[given.name] = codes if given.type == "tensor(uint8)" else codes.astype(np.float32) / 64
    session.run(None, feed)
    best = float("inf")
    for _ in range(_RUNS):
        start = time.perf_counter_ns()
        session.run(None, feed)
        best = min(best, time.perf_counter_ns() - start)
    return best


def _float_model(kernel: Kernel) -> ModelProto:
    names = [f"x{i}" for i in range(len(kernel.inputs))]
    node = helper.make_node(kernel.op_type, names + ["w"] * bool(kernel.weight), ["y"], **dict(kernel.attributes))
    constants = {"w": _random(kernel.weight)} if kernel.weight else {}
    return _model([node], dict(zip(names, kernel.inputs, strict=True)), TensorProto.FLOAT, TensorProto.FLOAT, constants)


def _int8_model(kernel: Kernel) -> ModelProto:
    """Codes in; codes out, but float out of a MatMul, as the table has it."""
    names = [f"x{i}" for i in range(len(kernel.inputs))]
    shapes = dict(zip(names, kernel.inputs, strict=True))
    constants: dict[str, Any] = {_SCALE: np.float32(1 / 64), _ZERO: np.uint8(128)}
    if kernel.moved:
        node = helper.make_node(kernel.op_type, names, ["y"], **dict(kernel.attributes))
        return _model([node], shapes, TensorProto.UINT8, TensorProto.UINT8, {})
    nodes = [helper.make_node("DequantizeLinear", [n, _SCALE, _ZERO], [n + "_float"]) for n in names]
    operands = [n + "_float" for n in names]
    if kernel.weight:
        axis = 0 if kernel.op_type == "Conv" else 1
        channels = kernel.weight[axis]
        constants["w"] = (_random(kernel.weight) * 40).clip(-127, 127).astype(np.int8)
        constants["w_scale"] = np.full(channels, 1 / 64, np.float32)
        constants[_WEIGHT_ZERO] = np.zeros(channels, np.int8)
        nodes.append(helper.make_node("DequantizeLinear", ["w", "w_scale", _WEIGHT_ZERO], ["w_float"], axis=axis))
        operands.append("w_float")
    nodes.append(helper.make_node(kernel.op_type, operands, ["y_float"], **dict(kernel.attributes)))
    if kernel.op_type == "MatMul":
        nodes[-1].output[0] = "y"
        return _model(nodes, shapes, TensorProto.UINT8, TensorProto.FLOAT, constants)
    nodes.append(helper.make_node("QuantizeLinear", ["y_float", _SCALE, _ZERO], ["y"]))
    return _model(nodes, shapes, TensorProto.UINT8, TensorProto.UINT8, constants)


def _conversion(kernel: Kernel) -> ModelProto:
    given, made = (TensorProto.FLOAT, TensorProto.UINT8)
    if kernel.op_type == "DequantizeLinear":
        given, made = made, given
    node = helper.make_node(kernel.op_type, ["x0", _SCALE, _ZERO], ["y"])
    constants = {_SCALE: np.float32(1 / 64), _ZERO: np.uint8(128)}
    return _model([node], {"x0": kernel.inputs[0]}, given, made, constants)


def _model(nodes: list[Any], inputs: dict[str, Shape], given: int, made: int, constants: dict[str, Any]) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "kernel",
        [helper.make_tensor_value_info(n, given, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("y", made, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _random(shape: Shape) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


if __name__ == "__main__":
    main()
