"""The main job on models and samples at the edge: a proved artifact or a clear error, never anything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

import qcompile
from qcompile.errors import DataError, ModelError, QCompileError

Array = np.ndarray[Any, Any]
Case = tuple[onnx.ModelProto, list[dict[str, Array]]]

WIDTH = 128
RANDOM = np.random.default_rng(0)


def normal(*shape: int, scale: float = 1.0) -> Array:
    return (RANDOM.standard_normal(shape) * scale).astype(np.float32)


def model(
    nodes: list[onnx.NodeProto],
    weights: dict[str, Array],
    x: list[Any] | None = None,
    outputs: tuple[str, ...] = ("y",),
    dtype: int = T.FLOAT,
) -> onnx.ModelProto:
    graph = h.make_graph(
        nodes,
        "edge",
        [h.make_tensor_value_info("x", dtype, ["n", WIDTH] if x is None else x)],
        [h.make_tensor_value_info(name, dtype, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)


def linear(
    w: Array | None = None,
    b: Array | None = None,
    outputs: tuple[str, ...] = ("y",),
    dtype: int = T.FLOAT,
    element: Any = np.float32,
) -> onnx.ModelProto:
    """y = relu(x w + b)."""
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["p"], name="matmul"),
        h.make_node("Add", ["p", "b"], ["s"], name="add"),
        h.make_node("Relu", ["s"], ["y"], name="relu"),
    ]
    w = normal(WIDTH, WIDTH) if w is None else w
    b = normal(WIDTH) if b is None else b
    return model(nodes, {"w": w.astype(element), "b": b.astype(element)}, outputs=outputs, dtype=dtype)


def convolution(
    w: Array | None = None, b: Array | None = None, outputs: tuple[str, ...] = ("y",), dtype: int = T.FLOAT
) -> onnx.ModelProto:
    """y = pool(conv(relu(conv(x)))) of 16 channels."""
    element = h.tensor_dtype_to_np_dtype(dtype)
    nodes = [
        h.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1] * 4),
        h.make_node("Relu", ["c"], ["r"], name="relu"),
        h.make_node("Conv", ["r", "w2"], ["d"], name="conv2", pads=[1] * 4),
        h.make_node("GlobalAveragePool", ["d"], ["y"], name="pool"),
    ]
    weights = {
        "w": normal(16, 16, 3, 3, scale=0.1) if w is None else w,
        "b": normal(16) if b is None else b,
        "w2": normal(16, 16, 3, 3, scale=0.1),
    }
    typed = {name: array.astype(element) for name, array in weights.items()}
    return model(nodes, typed, [1, 16, 16, 16], outputs, dtype)


def rows(count: int = 4, scale: float = 1.0) -> list[dict[str, Array]]:
    return [{"x": normal(64, WIDTH, scale=scale)} for _ in range(count)]


def images(count: int = 4, scale: float = 1.0) -> list[dict[str, Array]]:
    return [{"x": normal(1, 16, 16, 16, scale=scale)} for _ in range(count)]


def filled(value: float, shape: tuple[int, ...]) -> list[dict[str, Array]]:
    return [{"x": np.full(shape, value, np.float32)} for _ in range(4)]


def with_channels(w: Array, value: float, axis: int) -> Array:
    """`w` with two of its output channels set to `value`."""
    w[(slice(None),) * axis + ([3, 7],)] = value
    return w


def with_output(proto: onnx.ModelProto, name: str, shape: list[Any]) -> onnx.ModelProto:
    proto.graph.output.append(h.make_tensor_value_info(name, T.FLOAT, shape))
    return proto


def with_input(proto: onnx.ModelProto, name: str, shape: list[Any]) -> onnx.ModelProto:
    proto.graph.input.append(h.make_tensor_value_info(name, T.FLOAT, shape))
    return proto


def typed(samples: list[dict[str, Array]], element: Any) -> list[dict[str, Array]]:
    return [{name: array.astype(element) for name, array in sample.items()} for sample in samples]


def unused_input() -> Case:
    return with_input(linear(), "unused", ["m", 3]), [{**s, "unused": normal(2, 3)} for s in rows()]


def empty_inside() -> Case:
    """Rows cut to none, and joined with others again."""
    nodes = [
        h.make_node("Slice", ["x", "zero", "zero", "zero"], ["none"], name="slice"),
        h.make_node("MatMul", ["none", "w"], ["nothing"], name="empty"),
        h.make_node("Concat", ["x", "none"], ["all"], name="concat", axis=0),
        h.make_node("MatMul", ["all", "w"], ["y"], name="matmul"),
    ]
    weights = {"w": normal(WIDTH, WIDTH), "zero": np.array([0], np.int64)}
    return model(nodes, weights, outputs=("y", "nothing")), rows()


def scalars() -> Case:
    nodes = [h.make_node("Mul", ["x", "k"], ["p"], name="mul"), h.make_node("Add", ["p", "k"], ["y"], name="add")]
    return model(nodes, {"k": np.array(2, np.float32)}, []), [{"x": np.array(i, np.float32)} for i in range(4)]


def six_dimensions() -> Case:
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["p"], name="matmul"),
        h.make_node("Transpose", ["p"], ["t"], name="transpose", perm=[5, 4, 3, 2, 1, 0]),
        h.make_node("Add", ["t", "t"], ["y"], name="add"),
    ]
    shape = [2, 1, 2, 4, 8, WIDTH]
    return model(nodes, {"w": normal(WIDTH, WIDTH)}, shape), [{"x": normal(*shape)} for _ in range(4)]


def optional_inputs_missing() -> Case:
    nodes = [
        h.make_node("Clip", ["x", "", "high"], ["c"], name="clip"),
        h.make_node("Conv", ["c", "w", ""], ["r"], name="conv"),
        h.make_node("Resize", ["r", "", "scales"], ["y"], name="resize"),
    ]
    weights = {"w": normal(16, 16, 3, 3), "high": np.float32(1), "scales": np.array([1, 1, 2, 2], np.float32)}
    return model(nodes, weights, [1, 16, 16, 16]), images()  # type: ignore[arg-type]


def masked() -> Case:
    """Scores with a mask of -infinity."""
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["p"], name="matmul"),
        h.make_node("Add", ["p", "mask"], ["q"], name="add"),
        h.make_node("Softmax", ["q"], ["y"], name="softmax"),
    ]
    mask = np.where(np.arange(WIDTH) > 100, -np.inf, 0).astype(np.float32)
    return model(nodes, {"w": normal(WIDTH, WIDTH, scale=0.1), "mask": mask}), rows()


def integers() -> Case:
    node = h.make_node("Add", ["x", "k"], ["y"], name="add")
    proto = model([node], {"k": np.array([1], np.int64)}, ["n"], dtype=T.INT64)
    return proto, [{"x": np.arange(5)} for _ in range(4)]


def strings() -> Case:
    proto = model([h.make_node("Identity", ["x"], ["y"], name="same")], {}, ["n"], dtype=T.STRING)
    return proto, [{"x": np.array(["a", "b"], object)} for _ in range(4)]


def half_inside() -> Case:
    proto = linear(dtype=T.FLOAT16, element=np.float16)
    proto.graph.node[0].input[0] = "half"
    proto.graph.node.insert(0, h.make_node("Cast", ["x"], ["half"], name="cast", to=T.FLOAT16))
    proto.graph.input[0].type.tensor_type.elem_type = T.FLOAT
    return proto, rows()


def sequence_output() -> Case:
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["p"], name="matmul"),
        h.make_node("SequenceConstruct", ["p", "x"], ["y"], name="sequence"),
    ]
    proto = model(nodes, {"w": normal(WIDTH, WIDTH)})
    proto.graph.output[0].CopyFrom(h.make_tensor_sequence_value_info("y", T.FLOAT, None))
    return proto, rows()


def no_inputs() -> Case:
    proto = model(
        [h.make_node("MatMul", ["a", "w"], ["y"], name="matmul")], {"a": normal(4, WIDTH), "w": normal(WIDTH, WIDTH)}
    )
    del proto.graph.input[:]
    return proto, [{} for _ in range(4)]


COMPILES: dict[str, Callable[[], Case]] = {
    "a constant activation": lambda: (linear(), filled(3.0, (64, WIDTH))),
    "an activation of zeros": lambda: (linear(), filled(0.0, (64, WIDTH))),
    "images of zeros": lambda: (convolution(), filled(0.0, (1, 16, 16, 16))),
    "a Relu that never fires": lambda: (convolution(b=np.full(16, -1000.0)), images()),
    "channels of zeros": lambda: (convolution(with_channels(normal(16, 16, 3, 3), 0, 0)), images()),
    "columns of zeros": lambda: (linear(with_channels(normal(WIDTH, WIDTH), 0, 1)), rows()),
    "weights of zeros": lambda: (convolution(np.zeros((16, 16, 3, 3))), images()),
    "a matrix of zeros": lambda: (linear(np.zeros((WIDTH, WIDTH))), rows()),
    "nothing but zeros": lambda: (convolution(np.zeros((16, 16, 3, 3)), np.zeros(16)), images()),
    "denormal weights": lambda: (convolution(normal(16, 16, 3, 3, scale=1e-40)), images()),
    "a denormal matrix": lambda: (linear(normal(WIDTH, WIDTH, scale=1e-40)), rows()),
    "denormal activations": lambda: (convolution(b=np.zeros(16)), images(scale=1e-40)),
    "tiny activations": lambda: (convolution(b=np.zeros(16)), images(scale=1e-30)),
    "huge activations": lambda: (convolution(b=np.zeros(16)), images(scale=1e36)),
    "huge weights": lambda: (linear(normal(WIDTH, WIDTH, scale=1e34)), rows()),
    "a weight near the largest float": lambda: (linear(with_channels(normal(WIDTH, WIDTH), 1e38, 1)), rows(scale=1e-4)),
    "a huge bias": lambda: (convolution(b=np.full(16, 1e30)), images()),
    "a channel of tiny weights beside a bias": lambda: (
        convolution(with_channels(normal(16, 16, 3, 3), 1e-12, 0), np.full(16, 100.0)),
        images(),
    ),
    "one sample": lambda: (convolution(), images(1)),
    "tensors of no elements": empty_inside,
    "a weight of no columns": lambda: (
        model([h.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": normal(WIDTH, 0)}),
        rows(),
    ),
    "scalars": scalars,
    "a vector": lambda: (
        model([h.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": normal(WIDTH, WIDTH)}, [WIDTH]),
        [{"x": normal(WIDTH)} for _ in range(4)],
    ),
    "six dimensions": six_dimensions,
    "a mask of infinities": masked,
    "nothing to quantize": lambda: (model([h.make_node("Sin", ["x"], ["y"], name="sin")], {}), rows()),
    "an output that is an input": lambda: (with_output(linear(), "x", ["n", WIDTH]), rows()),
    "an output given twice": lambda: (linear(outputs=("y", "y")), rows()),
    "inner values as outputs": lambda: (convolution(outputs=("y", "c", "r", "d")), images()),
    "an initializer as output": lambda: (with_output(with_output(linear(), "b", [WIDTH]), "w", [WIDTH, WIDTH]), rows()),
    "an input that nobody reads": unused_input,
    "an input with a default": lambda: (with_input(linear(), "w", [WIDTH, WIDTH]), rows()),
    "no inputs": no_inputs,
    "optional inputs left out": optional_inputs_missing,
    "integers": integers,
    "strings": strings,
    "a sequence": sequence_output,
    "float64": lambda: (linear(dtype=T.DOUBLE, element=np.float64), typed(rows(), np.float64)),
    "float16": lambda: (linear(dtype=T.FLOAT16, element=np.float16), typed(rows(), np.float16)),
    "float16 images": lambda: (convolution(dtype=T.FLOAT16), typed(images(), np.float16)),
    "float16 inside": half_inside,
}


def spoiled(samples: list[dict[str, Array]], value: float) -> list[dict[str, Array]]:
    samples[2]["x"].flat[5] = value
    return samples


def logarithm() -> Case:
    """NaN where x is negative, in the third sample only."""
    nodes = [
        h.make_node("Log", ["x"], ["log"], name="log"),
        h.make_node("MatMul", ["log", "w"], ["y"], name="matmul"),
    ]
    samples = [{"x": np.abs(s["x"]) + 0.1} for s in rows()]
    return model(nodes, {"w": normal(WIDTH, WIDTH)}), spoiled(samples, -1.0)


def bfloat16() -> Case:
    return linear(dtype=T.BFLOAT16, element=ml_dtypes.bfloat16), typed(rows(), ml_dtypes.bfloat16)


def bare(proto: onnx.ModelProto) -> onnx.ModelProto:
    del proto.graph.node[:]
    proto.graph.output[0].name = "x"
    return proto


def without_outputs() -> Case:
    proto = linear()
    del proto.graph.output[:]
    return proto, rows()


REFUSED: dict[str, tuple[Callable[[], Case], type[QCompileError], str]] = {
    "NaN in a sample": (lambda: (linear(), spoiled(rows(), np.nan)), DataError, r"input 'x' holds NaN.*sample 3"),
    "infinity in a sample": (lambda: (linear(), spoiled(rows(), np.inf)), DataError, r"input 'x' holds infinity.*3"),
    "NaN in an activation": (logarithm, DataError, r"tensor 'log' holds NaN for calibration sample 3"),
    "NaN in a weight": (
        lambda: (linear(with_channels(normal(WIDTH, WIDTH), np.nan, 1)), rows()),
        ModelError,
        r"weight 'w' holds NaN.*matmul",
    ),
    "infinity in a weight": (
        lambda: (convolution(with_channels(normal(16, 16, 3, 3), np.inf, 0)), images()),
        ModelError,
        r"weight 'w' holds infinity.*conv",
    ),
    "NaN in a bias": (lambda: (convolution(b=np.full(16, np.nan)), images()), ModelError, r"weight 'b' holds NaN"),
    "an empty batch": (lambda: (linear(), [*rows(), {"x": normal(0, WIDTH)}]), DataError, r"'x' is empty.*sample 5"),
    "no samples": (lambda: (linear(), []), DataError, "no samples"),
    "a missing input": (lambda: (with_input(linear(), "z", [1]), rows()), DataError, "input 'z' is missing"),
    "outputs that are inputs": (lambda: (bare(linear()), rows()), ModelError, "has no nodes"),
    "no outputs": (without_outputs, ModelError, "has no outputs"),
    "bfloat16, which the CPU cannot run": (bfloat16, ModelError, "implementation.*float32"),
}


@pytest.mark.parametrize("name", COMPILES)
def test_it_compiles_and_the_numbers_are_right(name: str, tmp_path: Path) -> None:
    proto, samples = COMPILES[name]()
    source = tmp_path / "m.onnx"
    source.write_bytes(proto.SerializeToString())
    artifact = qcompile.compile(source, calibration=samples, report=tmp_path / "m.html")
    failed = {proof.name: proof.detail for proof in artifact.report.failed if proof.name != "speed"}
    assert failed == {}
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "m.html", artifact.path.name}
    dead = [w.name for w in artifact.report.weights if not np.isfinite(w.edges).all()]
    assert dead == []


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_words(name: str, tmp_path: Path) -> None:
    case, kind, words = REFUSED[name]
    proto, samples = case()
    source = tmp_path / "m.onnx"
    source.write_bytes(proto.SerializeToString())
    with pytest.raises(kind, match=words):
        qcompile.compile(source, calibration=samples, report=tmp_path / "m.html")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_broken_metric_is_told_before_the_work(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(linear().SerializeToString())

    def metric(run: object) -> float:
        raise KeyError("label")

    class Work:
        """Fails when calibration starts."""

        def start(self, what: str, total: int | None) -> None:
            assert "calibrating" not in what

        def advance(self, steps: int = 1) -> None: ...

        def finish(self) -> None: ...

    with pytest.raises(DataError, match="the metric failed on the float model: KeyError"):
        qcompile.compile(source, calibration=rows(), metric=metric, progress=Work())
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
