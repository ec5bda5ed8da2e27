"""Weight-only recipes on models at the edge: a proved artifact or a clear error, never anything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

import qcompile
from qcompile.errors import DataError, ModelError, QCompileError, RecipeError, UsageError
from tests.end_to_end.test_bad_input import WIDTH, Case, linear, model, normal, rows, with_channels
from tests.frontends.models import save_external

IDS = [{"x": np.arange(64).reshape(1, 64) % 32} for _ in range(4)]


def products(*weights: str, **arrays: np.ndarray) -> Case:
    """A chain of MatMuls by the weights named."""
    values = ["x", *(f"v{i}" for i in range(len(weights) - 1)), "y"]
    nodes = [h.make_node("MatMul", [values[i], w], [values[i + 1]], name=f"matmul{i}") for i, w in enumerate(weights)]
    return model(nodes, arrays), rows()


def of_depth(depth: int) -> Case:
    """A matrix of `depth` rows only."""
    proto, _ = products("w", w=normal(depth, WIDTH))
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = depth
    return proto, [{"x": normal(64, depth)} for _ in range(4)]


def made_by_nodes() -> Case:
    """One weight comes out of a node that computes with the input, one out of constants."""
    nodes = [
        h.make_node("Transpose", ["x"], ["t"], name="transpose"),
        h.make_node("MatMul", ["t", "x"], ["moving"], name="product"),
        h.make_node("MatMul", ["x", "moving"], ["p"], name="by_moving"),
        h.make_node("Mul", ["w", "two"], ["doubled"], name="double"),
        h.make_node("MatMul", ["p", "doubled"], ["y"], name="by_doubled"),
    ]
    return model(nodes, {"w": normal(WIDTH, WIDTH, scale=0.1), "two": np.array(2, np.float32)}), rows(scale=0.1)


def shared_two_ways() -> Case:
    """One matrix is read as it is and transposed."""
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["p"], name="matmul"),
        h.make_node("Gemm", ["p", "w"], ["y"], name="gemm", transB=1),
    ]
    return model(nodes, {"w": normal(WIDTH, WIDTH, scale=0.1)}), rows()


def tied() -> Case:
    """The table of the embedding is the head too."""
    nodes = [
        h.make_node("Gather", ["table", "x"], ["e"], name="embedding"),
        h.make_node("MatMul", ["e", "w"], ["m"], name="layer"),
        h.make_node("Transpose", ["table"], ["turned"], name="turn", perm=[1, 0]),
        h.make_node("MatMul", ["m", "turned"], ["y"], name="head"),
    ]
    proto = model(nodes, {"table": normal(32, WIDTH), "w": normal(WIDTH, WIDTH, scale=0.1)}, [1, "s"], dtype=T.INT64)
    proto.graph.output[0].type.tensor_type.elem_type = T.FLOAT
    return proto, IDS


def old_opset() -> Case:
    proto, samples = products("w", w=normal(WIDTH, WIDTH))
    proto.opset_import[0].version, proto.ir_version = 9, 4
    return proto, samples


COMPILES: dict[str, Callable[[], Case]] = {
    "fewer rows than a block": lambda: of_depth(8),
    "one row": lambda: of_depth(1),
    "rows that are no multiple of a block": lambda: of_depth(100),
    "columns of zeros": lambda: (linear(with_channels(normal(WIDTH, WIDTH), 0, 1)), rows()),
    "rows of zeros": lambda: (linear(with_channels(normal(WIDTH, WIDTH), 0, 0)), rows()),
    "a matrix of zeros": lambda: (linear(np.zeros((WIDTH, WIDTH))), rows()),
    "denormal weights": lambda: (linear(normal(WIDTH, WIDTH, scale=1e-40)), rows()),
    "tiny weights": lambda: (linear(normal(WIDTH, WIDTH, scale=1e-9)), rows()),
    "a weight of no columns": lambda: products("w", w=normal(WIDTH, 0)),
    "weights that nodes make": made_by_nodes,
    "a weight of two layers": lambda: products("w", "w", w=normal(WIDTH, WIDTH, scale=0.1)),
    "a weight read two ways": shared_two_ways,
    "a tied head": tied,
    "an old opset": old_opset,
    "nothing to store": lambda: (model([h.make_node("Sin", ["x"], ["y"], name="sin")], {}), rows()),
}


def saved(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("recipe", ["int4-rtn", "int4-gptq"])
@pytest.mark.parametrize("name", COMPILES)
def test_it_compiles_and_the_numbers_are_right(name: str, recipe: str, tmp_path: Path) -> None:
    proto, samples = COMPILES[name]()
    source = saved(proto, tmp_path)
    artifact = qcompile.compile(source, recipe, calibration=samples)
    failed = {proof.name: proof.detail for proof in artifact.report.failed if proof.name != "speed"}
    assert failed == {}
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", artifact.path.name}


def spoiled_table() -> Case:
    proto, samples = tied()
    table = next(t for t in proto.graph.initializer if t.name == "table")
    table.CopyFrom(onnx.numpy_helper.from_array(with_channels(normal(32, WIDTH), np.nan, 0), "table"))
    return proto, samples


def quantized() -> Case:
    proto, samples = products("w", w=normal(WIDTH, WIDTH))
    proto.graph.node.insert(0, h.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="quantize"))
    proto.graph.node.insert(1, h.make_node("DequantizeLinear", ["q", "s", "z"], ["restored"], name="restore"))
    proto.graph.node[2].input[0] = "restored"
    return proto, samples


REFUSED: dict[str, tuple[Callable[[], Case], type[QCompileError], str]] = {
    "NaN in a weight": (
        lambda: (linear(with_channels(normal(WIDTH, WIDTH), np.nan, 1)), rows()),
        ModelError,
        r"weight 'w' holds NaN.*matmul",
    ),
    "infinity in a weight": (
        lambda: (linear(with_channels(normal(WIDTH, WIDTH), np.inf, 1)), rows()),
        ModelError,
        r"weight 'w' holds infinity.*matmul",
    ),
    "NaN in an embedding": (spoiled_table, ModelError, r"weight 'table' holds NaN"),
    "weights too large for their scales": (
        lambda: (linear(normal(WIDTH, WIDTH, scale=1e34)), rows()),
        DataError,
        r"too large for fp16.*weight 'w' of 'matmul'.*keep it float",
    ),
    "quantized already": (quantized, ModelError, r"quantized already.*quantize"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_words(name: str, tmp_path: Path) -> None:
    case, kind, words = REFUSED[name]
    proto, samples = case()
    source = saved(proto, tmp_path)
    with pytest.raises(kind, match=words):
        qcompile.compile(source, "int4-rtn", calibration=samples)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_what_needs_samples_says_so_before_the_work(tmp_path: Path) -> None:
    source = saved(linear(), tmp_path)

    class Work:
        """Fails when the first pass is reported."""

        def start(self, what: str, total: int | None) -> None:
            raise AssertionError(what)

        def advance(self, steps: int = 1) -> None: ...

        def finish(self) -> None: ...

    with pytest.raises(UsageError, match="'int4-gptq' needs calibration data"):
        qcompile.compile(source, "int4-gptq", progress=Work())
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(
    ("layers", "words"), [('[{"role": "heads"}]', "role"), ('[{"name": "lm_*", "keep-float": true}]', "lm_")]
)
def test_layers_that_do_not_exist(layers: str, words: str, tmp_path: Path) -> None:
    source = saved(linear(), tmp_path)
    with pytest.raises(RecipeError, match=words):
        qcompile.compile(source, "int4-rtn", overrides=[f"place-weights.layers={layers}"])
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_external_weights_that_are_missing_or_cut(tmp_path: Path) -> None:
    source = save_external(tmp_path / "m.onnx", "weights.bin", tmp_path / "weights.bin")
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[:-4])
    with pytest.raises(ModelError, match=r"weights\.bin' is truncated"):
        qcompile.compile(source, "int4-rtn")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights\.bin' is missing"):
        qcompile.compile(source, "int4-rtn")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
