"""Every row of the CPU table by running: its operator lowered by the real passes, and the kernel it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompile.compiler.artifact import write_model
from qcompile.compiler.context import CompileContext
from qcompile.compiler.passes import import_passes
from qcompile.compiler.pipeline import run_pipeline
from qcompile.compiler.plan import Form
from qcompile.compiler.recipe import Recipe
from qcompile.compiler.targets.cpu import CPU
from qcompile.compiler.targets.table import Cost, Row, Target
from qcompile.compiler.verification.dispatch import prove_dispatch
from qcompile.compiler.verification.legality import find_faults
from qcompile.compiler.verification.noise import compare_outputs, runner
from qcompile.errors import TargetError
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.passes.quantize import place_int8

Patch = pytest.MonkeyPatch
RANDOM = np.random.default_rng(0)
IMAGE = [1, 8, 8, 8]


def _weight(*shape: int) -> np.ndarray[Any, Any]:
    return RANDOM.standard_normal(shape).astype(np.float32)


def _graph(op_type: str, inputs: Sequence[list[int] | np.ndarray[Any, Any]], **attributes: Any) -> onnx.ModelProto:
    """x0, x1, ... (shapes) or c0, c1, ... (arrays) -> the operator -> Softmax, which stays float."""
    names, given, constants = [], [], []
    for i, item in enumerate(inputs):
        if isinstance(item, list):
            names.append(f"x{i}")
            given.append(helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, item))
        else:
            names.append(f"c{i}")
            constants.append(numpy_helper.from_array(item, f"c{i}"))
    nodes = [
        helper.make_node(op_type, names, ["v"], name="it", **attributes),
        helper.make_node("Softmax", ["v"], ["y"], name="after"),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", given, [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _gather() -> onnx.ModelProto:
    model = _graph("Gather", [_weight(50, 16), np.zeros(0, np.int64)])
    model.graph.input.append(helper.make_tensor_value_info("c1", TensorProto.INT64, [6]))
    model.graph.initializer.remove(next(i for i in model.graph.initializer if i.name == "c1"))
    return model


def _recurrent(op_type: str, gates: int) -> onnx.ModelProto:
    return _graph(op_type, [[5, 1, 6], _weight(1, gates * 8, 6) / 3, _weight(1, gates * 8, 8) / 3], hidden_size=8)


CASES: dict[tuple[str, str], onnx.ModelProto] = {
    ("Conv", "depthwise"): _graph("Conv", [IMAGE, _weight(8, 1, 3, 3), _weight(8)], group=8, pads=[1, 1, 1, 1]),
    ("Conv", "image input"): _graph("Conv", [[1, 3, 8, 8], _weight(8, 3, 3, 3)]),
    ("Conv", "one-dimensional"): _graph("Conv", [[1, 8, 32], _weight(8, 8, 3), _weight(8)]),
    ("Conv", ""): _graph("Conv", [IMAGE, _weight(16, 8, 1, 1), _weight(16)]),
    ("MatMul", "constant weight"): _graph("MatMul", [[1, 6, 16], _weight(16, 8)]),
    ("MatMul", "two activations"): _graph("MatMul", [[2, 6, 16], [2, 16, 6]]),
    ("Gemm", ""): _graph("Gemm", [[4, 16], _weight(8, 16), _weight(8)], transB=1),
    ("LSTM", ""): _recurrent("LSTM", 4),
    ("GRU", ""): _recurrent("GRU", 3),
    ("Gather", "rows of a constant table"): _gather(),
    ("Add", ""): _graph("Add", [IMAGE, IMAGE]),
    ("Mul", ""): _graph("Mul", [IMAGE, [1, 8, 1, 1]]),
    ("GlobalAveragePool", ""): _graph("GlobalAveragePool", [IMAGE]),
    ("AveragePool", ""): _graph("AveragePool", [IMAGE], kernel_shape=[2, 2], strides=[2, 2]),
    ("Sigmoid", ""): _graph("Sigmoid", [IMAGE]),
    ("LeakyRelu", ""): _graph("LeakyRelu", [IMAGE], alpha=0.1),
    ("Concat", ""): _graph("Concat", [IMAGE, IMAGE], axis=1),
    ("Transpose", ""): _graph("Transpose", [IMAGE], perm=[0, 2, 1, 3]),
    ("Reshape", ""): _graph("Reshape", [IMAGE, np.array([1, 64, 8])]),
    ("Flatten", ""): _graph("Flatten", [IMAGE]),
    ("Squeeze", ""): _graph("Squeeze", [IMAGE, np.array([0])]),
    ("Unsqueeze", ""): _graph("Unsqueeze", [IMAGE, np.array([0])]),
    ("Slice", ""): _graph("Slice", [IMAGE, np.array([1]), np.array([5]), np.array([1])]),
    ("MaxPool", ""): _graph("MaxPool", [IMAGE], kernel_shape=[2, 2], strides=[2, 2]),
    ("Resize", ""): _graph(
        "Resize",
        [IMAGE, np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
}


def _eager(row: Row, form: Form) -> Target:
    """The CPU with this row alone and conversions for nothing, so that placement cannot prefer float."""
    forms = row.forms if form is Form.ROUNDED else {form: Cost()}
    only = replace(row, float_cost=Cost(fixed=1e12), forms=forms)
    return replace(CPU, rows=(only,), quantize=Cost(), dequantize=Cost())


class _Samples:
    description, synthetic = "two random samples", True

    def __init__(self, model: onnx.ModelProto) -> None:
        self.samples = [{i.name: _values(i) for i in model.graph.input} for _ in range(2)]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Any:
        return iter(self.samples)

    def digest(self) -> str:
        return ""


def _values(value: onnx.ValueInfoProto) -> np.ndarray[Any, Any]:
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
    if value.type.tensor_type.elem_type == TensorProto.INT64:
        return RANDOM.integers(0, 50, shape)
    return RANDOM.standard_normal(shape).astype(np.float32)


def _id(row: Row) -> str:
    return f"{row.op_type} {row.variant}".strip()


ROWS = [pytest.param(row, form, id=f"{_id(row)}, {form.name}") for row in CPU.rows for form in row.forms]


def test_every_row_has_a_graph() -> None:
    assert {(row.op_type, row.variant) for row in CPU.rows} == set(CASES)


def _recipe(form: Form) -> Recipe:
    """The packaged recipe that places `form`."""
    if form in (Form.DYNAMIC, Form.BLOCKS, Form.WEIGHTS):
        return find_recipe("int8-dynamic").with_overrides([f"place-dynamic.per-token={form is Form.BLOCKS}".lower()])
    if form is Form.ROUNDED:
        return find_recipe("int16-activations")
    return find_recipe("int8-static").with_overrides(["place-int8.activation-products=true"])


@pytest.mark.parametrize(("row", "form"), ROWS)
def test_the_named_kernel_runs(row: Row, form: Form, tmp_path: Path, monkeypatch: Patch) -> None:
    _prove(row, form, [], tmp_path, monkeypatch)


STATIC = [p for p in ROWS if p.values[1] in (Form.FULL, Form.INPUTS, Form.PASS)]  # type: ignore[comparison-overlap]
WEIGHTED = [p for p in STATIC if p.values[0].weight is not None]  # type: ignore[union-attr]
_OPTION = "place-int8.{}={}".format


@pytest.mark.parametrize(("row", "form"), STATIC)
@pytest.mark.parametrize(("activation", "symmetric"), [("int8", "true"), ("int8", "false"), ("uint8", "true")])
def test_other_formats_of_activations_run_too(
    row: Row, form: Form, activation: str, symmetric: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    options = [_OPTION("activation", activation), _OPTION("symmetric", symmetric)]
    _prove(row, form, options, tmp_path, monkeypatch)


@pytest.mark.parametrize(("row", "form"), WEIGHTED)
@pytest.mark.parametrize(
    ("activation", "weight", "per_channel"),
    [("uint8", "int8", "false"), ("uint8", "uint8", "true"), ("int8", "int8", "false")],
)
def test_other_formats_of_weights_run_too(
    row: Row,
    form: Form,
    activation: str,
    weight: str,
    per_channel: str,
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    options = [_OPTION("activation", activation), _OPTION("weight", weight), _OPTION("per-channel", per_channel)]
    _prove(row, form, options, tmp_path, monkeypatch)


@pytest.mark.parametrize("op_type", ["Conv", "MatMul", "Gemm"])
@pytest.mark.parametrize("activation", ["int16", "uint16"])
def test_16_bit_activations_are_rounded_and_computed_in_float(
    op_type: str, activation: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    row = next(r for r in CPU.rows if r.op_type == op_type and r.variant in ("", "constant weight"))
    context = _prove(row, Form.ROUNDED, [_OPTION("activation", activation)], tmp_path, monkeypatch, least=35)
    assert any("smaller, not faster" in notice for notice in context.notices)


def test_fp8_is_refused_with_what_to_do_instead() -> None:
    with pytest.raises(TargetError, match=r"does not load at default options.*use int8"):
        CPU.pair("fp8-e4m3", None, None)


def test_a_pair_that_no_kernel_takes_is_refused_with_those_there_are() -> None:
    with pytest.raises(TargetError, match=r"no int16 activations with uint8 weights.*uint8 activations with"):
        CPU.pair("int16", "uint8", None)


def _prove(
    row: Row, form: Form, options: list[str], folder: Path, monkeypatch: Patch, least: float = 20
) -> CompileContext:
    """Lower a graph of the row's operator and check what the runtime executes against the table."""
    monkeypatch.setattr(place_int8, "within_reach", lambda found: found)  # whether it pays is not the question here
    import_passes("qcompile.passes")
    proto = CASES[row.op_type, row.variant]
    onnx.save(proto, folder / "float.onnx")
    context = CompileContext(target=_eager(row, form), float_model=folder / "float.onnx")
    samples = _Samples(proto)
    context.calibration = samples
    model = ir.load(folder / "float.onnx")
    run_pipeline(_recipe(form).with_overrides(options).passes(), model, context)
    assert context.plan.units["it"].form is form, context.plan.kept_float

    artifact = folder / "int8.onnx"
    write_model(model, artifact, {})
    found = prove_dispatch(artifact, CPU, context.plan)
    assert found.proof.passed, found.proof.detail
    unit = next(u for u in found.units if u.node == "it")
    assert unit.kernel in (*row.kernels, *([row.op_type] if form is Form.ROUNDED else []))
    assert find_faults(ir.load(artifact), CPU) == []
    cpu = "CPUExecutionProvider"
    outputs, _ = compare_outputs(runner(folder / "float.onnx", cpu), runner(artifact, cpu), samples.samples)
    assert outputs[0].sqnr > least
    return context
