from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from rich.console import Console
from small_models import convolutions, quantized_by_onnxruntime, save

import qcompile
from qcompile.compiler.diff import Change, Diff, NodeChange, diff
from qcompile.compiler.diffing.tensors import TensorEvent
from qcompile.compiler.plan import Form
from qcompile.compiler.provenance import PASS, SOURCE
from qcompile.compiler.reporting.diff_html import render_diff
from qcompile.compiler.reporting.diff_summary import patterns, runs
from qcompile.compiler.reporting.diff_terminal import show_diff
from qcompile.errors import ModelError
from qcompile.frontends.builtin_recipes import find_recipe
from tests.passes.llama import WIDTH, llama


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convolutions(tmp_path_factory.mktemp("models") / "float.onnx")


def rows(found: Diff) -> dict[str, NodeChange]:
    """Rows by the name of their first operation."""
    return {(n.before or n.after)[0].name: n for n in found.nodes}


def test_a_model_does_not_differ_from_itself(float_model: Path) -> None:
    found = diff(float_model, float_model)
    assert found.identical
    assert found.unchanged == 7
    assert found.unchanged_tensors == 6


def test_the_result_of_quantize_static(float_model: Path, tmp_path: Path) -> None:
    found = diff(float_model, quantized_by_onnxruntime(float_model, tmp_path / "q.onnx"))
    by_name = rows(found)
    conv = by_name["conv1"]
    assert conv.changes == [Change.QUANTIZED, Change.FUSED]
    assert [b.op_type for b in conv.before] == ["Conv", "Relu"]
    assert [a.form for a in conv.after] == [Form.FULL]
    assert by_name["flatten"].after[0].form == Form.PASS
    assert all(Change.QUANTIZED in n.changes for n in found.nodes)
    assert Change.ADDED not in found.counts
    assert Change.MOVED not in found.counts
    tensors = {t.name: t for t in found.tensors}
    assert tensors["w1"].event is TensorEvent.QUANTIZED
    assert (tensors["w1"].dtype_before, tensors["w1"].dtype_after) == ("float32", "int8")
    assert tensors["w1"].bytes_before == 8 * 3 * 3 * 3 * 4
    assert tensors["w1"].bytes_after == 8 * 3 * 3 * 3 + 8 * 4 + 8  # codes, scales, zero points
    assert found.after.conversions == {"DequantizeLinear": 13, "QuantizeLinear": 7}


def test_operator_form_is_seen_through_too(float_model: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantFormat

    q = quantized_by_onnxruntime(float_model, tmp_path / "q.onnx", quant_format=QuantFormat.QOperator)
    by_name = rows(diff(float_model, q))
    assert by_name["conv2"].after[0].op_type == "QLinearConv"
    assert by_name["conv2"].changes == [Change.QUANTIZED]
    assert by_name["fc"].after[0].op_type == "com.microsoft::QGemm"
    assert by_name["fc"].after[0].form == Form.FULL


def test_backwards_it_is_float_again(float_model: Path, tmp_path: Path) -> None:
    found = diff(quantized_by_onnxruntime(float_model, tmp_path / "q.onnx"), float_model)
    assert Change.FLOAT_AGAIN in rows(found)["conv1"].changes
    assert Change.QUANTIZED not in found.counts


def test_dynamic_quantization_expands(float_model: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(float_model, tmp_path / "q.onnx")
    conv = rows(diff(float_model, tmp_path / "q.onnx"))["conv2"]
    assert Change.QUANTIZED in conv.changes
    assert Change.EXPANDED in conv.changes
    assert conv.after[0].op_type == "ConvInteger"
    assert conv.after[0].form == Form.INPUTS


def test_renamed_nodes_are_matched_by_structure(float_model: Path, tmp_path: Path) -> None:
    found = diff(float_model, convolutions(tmp_path / "renamed.onnx", prefix="module_"))
    assert found.counts == {}
    assert {(n.before[0].name, n.after[0].name) for n in found.nodes} >= {
        ("conv1", "module_conv1"),
        ("fc", "module_fc"),
    }


def test_changed_values_are_found_by_content(float_model: Path, tmp_path: Path) -> None:
    found = diff(float_model, convolutions(tmp_path / "scaled.onnx", scale=2.0))
    assert found.counts == {}
    assert {t.event for t in found.tensors} == {TensorEvent.CHANGED}
    assert len(found.tensors) == 6
    assert not found.identical


def test_a_branch_belongs_to_the_layer_it_stands_beside(tmp_path: Path) -> None:
    """Its product in codes is fused with the bias; the thin products of the branch read what the layer reads."""
    model = llama(1)
    for node in model.graph:
        node.name = node.outputs[0].name
    ir.save(model, tmp_path / "m.onnx")
    sample = {"x": np.ones((1, 4, WIDTH), np.float32)}
    recipe = find_recipe("svdquant-int4").with_overrides(["svdquant.rank=4"])
    made = qcompile.compile(tmp_path / "m.onnx", recipe, calibration=[sample] * 2, prove=False)
    found = diff(tmp_path / "m.onnx", made.path)
    quantized = [n for n in found.nodes if Change.QUANTIZED in n.changes]
    assert len(quantized) == 7
    for row in quantized:
        assert Change.EXPANDED in row.changes
        assert sorted(a.op_type for a in row.after) == ["Add", "MatMul", "MatMul", "com.microsoft::MatMulNBits"]
    assert not {Change.ADDED, Change.MOVED} & found.counts.keys()


def edited(source: Path, target: Path, change: object) -> Path:
    model = onnx.load(source)
    change(model.graph)  # type: ignore[operator]
    onnx.save(model, target)
    return target


def test_provenance_beats_names(float_model: Path, tmp_path: Path) -> None:
    """conv1 and relu1 became one node with a name of its own; add was replaced by another operator."""

    def change(graph: onnx.GraphProto) -> None:
        conv, relu, add = graph.node[0], graph.node[1], graph.node[3]
        conv.name, conv.output[0] = "anything", "r1"
        conv.metadata_props.add(key=SOURCE, value="conv1\nrelu1")
        conv.metadata_props.add(key=PASS, value="fuse-activations")
        add.op_type, add.name = "Sum", "other"
        add.metadata_props.add(key=SOURCE, value="add")
        graph.node.remove(relu)

    found = diff(float_model, edited(float_model, tmp_path / "fused.onnx", change))
    by_name = rows(found)
    assert by_name["conv1"].changes == [Change.FUSED]
    assert by_name["conv1"].detail == "from Conv + Relu"
    assert by_name["add"].changes == [Change.REPLACED]
    assert by_name["add"].detail == "Add → Sum"
    assert found.counts == {Change.FUSED: 1, Change.REPLACED: 1}


def test_added_removed_moved_and_retuned(float_model: Path, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        graph.node.remove(graph.node[1])
        graph.node[1].input[0] = "c1"
        graph.node[2].input[1] = "x"  # the residual comes from elsewhere now
        graph.node[0].attribute[0].ints[:] = [2, 2, 2, 2]
        graph.node.append(helper.make_node("Tanh", ["y"], ["z"], "tanh"))

    found = diff(float_model, edited(float_model, tmp_path / "edited.onnx", change))
    by_name = rows(found)
    assert by_name["relu1"].changes == [Change.REMOVED]
    assert by_name["tanh"].changes == [Change.ADDED]
    assert by_name["add"].changes == [Change.MOVED]
    assert by_name["conv1"].changes == [Change.RETUNED]
    assert by_name["conv1"].detail == "pads [1, 1, 1, 1] → [2, 2, 2, 2]"
    assert by_name["conv2"].changes == []  # what was removed between two operations does not move them


def test_an_activation_before_the_conversion_belongs_to_the_unit(float_model: Path, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        params = [numpy_helper.from_array(np.float32(0.1), "scale"), numpy_helper.from_array(np.uint8(0), "zero")]
        graph.initializer.extend(params)
        names = {"x": "conv1", "w1": "conv1", "r1": "conv2"}
        for value, reader in names.items():
            at = next(i for i, n in enumerate(graph.node) if n.name == reader)
            graph.node.insert(
                at, helper.make_node("DequantizeLinear", [value + "_q", "scale", "zero"], [value + "_dq"])
            )
            graph.node.insert(at, helper.make_node("QuantizeLinear", [value, "scale", "zero"], [value + "_q"]))
            node = graph.node[at + 2]
            node.input[list(node.input).index(value)] = value + "_dq"
        add = next(n for n in graph.node if n.name == "add")
        add.input[1] = "r1_dq"

    by_name = rows(diff(float_model, edited(float_model, tmp_path / "q.onnx", change)))
    assert by_name["conv1"].after[0].form == Form.FULL
    assert by_name["conv2"].after[0].form == Form.FLOAT  # its weight is float
    assert all(Change.MOVED not in n.changes for n in by_name.values())


def test_rows_of_a_quantized_table(tmp_path: Path) -> None:
    def model(path: Path, dtype: type[np.generic]) -> Path:
        table = numpy_helper.from_array(np.ones((9, 4), dtype), "table")
        index = numpy_helper.from_array(np.array([1, 2]), "index")
        nodes = [helper.make_node("Gather", ["table", "index"], ["r"], "pick")]
        nodes.append(helper.make_node("Cast", ["r"], ["f"], "cast", to=1) if dtype is np.int8 else nodes.pop())
        last = "f" if dtype is np.int8 else "r"
        nodes.append(helper.make_node("Add", [last, "x"], ["y"], "add"))
        return save(path, nodes, [table, index], [("x", [2, 4])], [("y", [2, 4])])

    found = diff(model(tmp_path / "a.onnx", np.float32), model(tmp_path / "b.onnx", np.int8))
    assert rows(found)["pick"].after[0].form == Form.ROWS


def test_attributes_written_out_are_no_change(float_model: Path, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        graph.node[0].attribute.extend([helper.make_attribute("group", 1), helper.make_attribute("strides", [1, 1])])
        graph.node[6].attribute.append(helper.make_attribute("alpha", 1.0))

    assert diff(float_model, edited(float_model, tmp_path / "spelled.onnx", change)).identical


def test_weights_only(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((4, 6), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "mm")
    a = save(tmp_path / "a.onnx", [node], [weight], [("x", ["n", 4])], [("y", ["n", 6])])
    codes = [
        numpy_helper.from_array(np.full((4, 6), 127, np.int8), "w_quantized"),
        numpy_helper.from_array(np.float32(1 / 127), "w_scale"),
    ]
    dq = helper.make_node("DequantizeLinear", ["w_quantized", "w_scale"], ["w"], "dq")
    b = save(tmp_path / "b.onnx", [dq, node], codes, [("x", ["n", 4])], [("y", ["n", 6])])
    found = diff(a, b)
    assert found.nodes[0].after[0].form == "int8 weights"
    assert [(t.name, t.event, t.bytes_after) for t in found.tensors] == [("w", TensorEvent.QUANTIZED, 24 + 4)]


def test_bodies_of_control_flow_are_compared(tmp_path: Path) -> None:
    def branch(name: str, op_type: str) -> onnx.GraphProto:
        node = helper.make_node(op_type, ["x"], [name + "_out"], name + "_node")
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name + "_out", 1, [2])])

    def model(path: Path, op_type: str) -> Path:
        condition = numpy_helper.from_array(np.array(True), "c")
        node = helper.make_node(
            "If", ["c"], ["y"], "choice", then_branch=branch("then", "Relu"), else_branch=branch("else", op_type)
        )
        return save(path, [node], [condition], [("x", [2])], [("y", [2])])

    found = diff(model(tmp_path / "a.onnx", "Tanh"), model(tmp_path / "b.onnx", "Sigmoid"))
    by_name = rows(found)
    assert by_name["then_node"].changes == []
    assert by_name["then_node"].before[0].scope == "choice.then_branch"
    changed = [n for n in found.nodes if n.changes]
    assert {b.op_type for n in changed for b in n.before} == {"Tanh"}
    assert {a.op_type for n in changed for a in n.after} == {"Sigmoid"}


def test_missing_external_data_does_not_matter(float_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "external.onnx"
    onnx.save(onnx.load(float_model), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert diff(float_model, path).identical
    (tmp_path / "weights.bin").unlink()
    found = diff(float_model, path)
    assert found.counts == {}
    assert found.unchanged_tensors == 6


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08"])
def test_what_is_no_model_is_an_error(float_model: Path, tmp_path: Path, content: bytes) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(content)
    with pytest.raises(ModelError) as error:
        diff(float_model, bad)
    assert "bad.onnx" in str(error.value)


def test_json_and_terminal_and_page(float_model: Path, tmp_path: Path) -> None:
    found = diff(float_model, quantized_by_onnxruntime(float_model, tmp_path / "q.onnx"))
    assert Diff.model_validate_json(found.model_dump_json()) == found
    out = io.StringIO()
    show_diff(found, Console(file=out, width=140))
    assert "quantized, fused" in out.getvalue()
    assert "Conv + Relu" in out.getvalue()
    assert "float32 → int8" in out.getvalue()
    html = render_diff(found)
    assert html.count("<script>") == 1
    assert "q.onnx" in html
    assert patterns(found)[0].rows >= 1
    assert sum(len(run.rows) for run in runs(found)) == len(found.nodes)


def test_names_are_escaped_on_the_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"

    def model(path: Path, op_type: str) -> Path:
        weight = numpy_helper.from_array(np.ones(2, np.float32), evil)
        node = helper.make_node(op_type, ["x", evil], ["y"], evil + "node")
        return save(path, [node], [weight], [("x", [2])], [("y", [2])])

    html = render_diff(diff(model(tmp_path / "a.onnx", "Add"), model(tmp_path / "b.onnx", "Mul")))
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
