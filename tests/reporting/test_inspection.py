from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from rich.console import Console
from small_models import convolutions, quantized_by_onnxruntime, save

from qcompile.compiler.inspection import Inspection, inspect
from qcompile.compiler.reporting.inspection_terminal import show_inspection
from qcompile.errors import ModelError
from qcompile.runtime.model_header import MANIFEST


def shown(found: Inspection) -> str:
    out = io.StringIO()
    show_inspection(found, Console(file=out, width=120))
    return out.getvalue()


def test_a_float_model(tmp_path: Path) -> None:
    path = convolutions(tmp_path / "m.onnx")
    found = inspect(path)
    assert found.file_bytes == path.stat().st_size
    assert [(v.name, v.dtype, v.dims) for v in found.inputs] == [("x", "float32", ["1", "3", "12", "12"])]
    assert found.operators[0].op_type == "Conv"
    assert found.operators[0].nodes == 2
    assert found.parameters == 8 * 27 + 8 + 8 * 72 + 8 + 40 + 5
    assert [(t.dtype, t.tensors, t.bytes) for t in found.stored] == [("float32", 6, found.parameters * 4)]
    assert found.unknown_shapes == []
    assert found.manifest is None
    cpu = next(c for c in found.coverage if c.target == "cpu")
    assert cpu.nodes == 7
    assert cpu.quantizable >= 4
    cuda = next(c for c in found.coverage if c.target == "cuda")
    assert cuda.quantizable < cpu.quantizable
    assert any("no 8-bit convolution" in reason for reason in cuda.obstacles)
    text = shown(found)
    assert "1 x 3 x 12 x 12" in text
    assert "Could run in int8" in text
    assert Inspection.model_validate_json(found.model_dump_json()) == found


def test_dynamic_dimensions_and_unknown_shapes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Foo", ["x"], ["h"], "foo", domain="my.ops"),
        helper.make_node("Relu", ["h"], ["y"], "relu"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["batch", None, 4])],
        [helper.make_tensor_value_info("y", 1, None)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.ops", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    found = inspect(tmp_path / "m.onnx")
    assert found.inputs[0].dims == ["batch", "?", "4"]
    assert found.inputs[0].dynamic == ["batch", "?"]
    assert found.outputs[0].dims is None
    assert found.unknown_shapes == ["h", "y"]
    assert {o.op_type for o in found.operators} == {"my.ops::Foo", "Relu"}
    assert "unknown rank" in shown(found)


def test_bodies_are_counted(tmp_path: Path) -> None:
    def branch(name: str) -> onnx.GraphProto:
        weight = numpy_helper.from_array(np.ones(2, np.float32), name + "_w")
        node = helper.make_node("Add", ["x", name + "_w"], [name + "_out"], name + "_node")
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name + "_out", 1, [2])], [weight])

    condition = numpy_helper.from_array(np.array(True), "c")
    node = helper.make_node("If", ["c"], ["y"], "choice", then_branch=branch("then"), else_branch=branch("else"))
    found = inspect(save(tmp_path / "m.onnx", [node], [condition], [("x", [2])], [("y", [2])]))
    assert found.bodies == 2
    assert found.nodes == 3
    add = next(o for o in found.operators if o.op_type == "Add")
    assert (add.nodes, add.in_bodies) == (2, 2)
    assert {t.dtype: t.tensors for t in found.stored} == {"float32": 2, "bool": 1}


def test_external_data_present_missing_and_outside(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    model = onnx.load(convolutions(tmp_path / "m.onnx"))
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    [file] = inspect(folder / "m.onnx").external
    assert (file.location, file.tensors, file.present) == ("w.bin", 6, True)
    assert inspect(folder / "m.onnx").file_bytes > (folder / "m.onnx").stat().st_size
    (folder / "w.bin").rename(tmp_path / "w.bin")
    found = inspect(folder / "m.onnx")
    assert not found.external[0].present
    assert "missing" in shown(found)
    moved = onnx.load(folder / "m.onnx", load_external_data=False)
    for tensor in moved.graph.initializer:
        next(e for e in tensor.external_data if e.key == "location").value = "../w.bin"
    onnx.save(moved, folder / "m.onnx")
    assert not inspect(folder / "m.onnx").external[0].present


def test_a_quantized_model_says_so(tmp_path: Path) -> None:
    path = quantized_by_onnxruntime(convolutions(tmp_path / "m.onnx"), tmp_path / "q.onnx")
    found = inspect(path)
    assert found.conversions == 20
    assert "Quantized already: 20 conversions" in shown(found)


def test_the_manifest_of_an_artifact(tmp_path: Path) -> None:
    model = onnx.load(convolutions(tmp_path / "m.onnx"))
    model.metadata_props.add(key=MANIFEST, value='{"recipe": {"name": "int8-static"}, "target": "cpu"}')
    onnx.save(model, tmp_path / "a.onnx")
    found = inspect(tmp_path / "a.onnx")
    assert found.manifest == {"recipe": {"name": "int8-static"}, "target": "cpu"}
    assert "recipe int8-static for cpu" in shown(found)


def test_what_is_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"PK\x03\x04 something")
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        inspect(tmp_path / "bad.onnx")
    with pytest.raises(ModelError, match="No such file"):
        inspect(tmp_path / "none.onnx")
