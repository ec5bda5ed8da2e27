"""Every fault of a model file is a ModelError that names the place; nothing is read from outside its folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from qcompile.errors import ModelError
from qcompile.frontends.model_file import load_float_model, load_model
from tests.frontends.models import linear, save, save_external


def fault(path: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_float_model(path)
    assert caught.value.exit_code == 1
    return caught.value


def test_a_good_model_loads(tmp_path: Path) -> None:
    model = load_float_model(save(linear(), tmp_path / "m.onnx"))
    assert [n.op_type for n in model.graph] == ["MatMul", "Add", "Relu"]


def test_no_such_file_names_a_similar_one(tmp_path: Path) -> None:
    save(linear(), tmp_path / "model.onnx")
    error = fault(tmp_path / "modle.onnx")
    assert error.what == "no such file"
    assert "model.onnx" in error.hint


def test_a_folder_names_the_model_in_it(tmp_path: Path) -> None:
    save(linear(), tmp_path / "model.onnx")
    error = fault(tmp_path)
    assert "folder" in error.what
    assert "model.onnx" in error.hint


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"hello, this is a text about models\n" * 9, "not an ONNX model"),
        (b"\x00" * 100, "not an ONNX model"),
        (bytes(range(256)), "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"PK\x03\x04rest", "zip"),
        (b"<html></html>", "text"),
    ],
)
def test_not_a_protobuf(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert expected in fault(path).what


def test_random_bytes_are_never_a_traceback(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for size in (1, 2, 7, 64, 500):
        for _ in range(40):
            path = tmp_path / "m.onnx"
            path.write_bytes(random.bytes(size))
            fault(path)


def test_truncated_at_every_length(tmp_path: Path) -> None:
    whole = linear().SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        fault(path)
    path.write_bytes(whole[: len(whole) // 2])
    assert "truncated: at least" in fault(path).what


def test_damaged_inside_the_graph(tmp_path: Path) -> None:
    whole = bytearray(linear().SerializeToString())
    whole[20:60] = b"\xff" * 40
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes(whole))
    assert "damaged" in fault(path).what


def test_an_empty_graph(tmp_path: Path) -> None:
    model = linear()
    del model.graph.node[:]
    assert "no nodes" in fault(save(model, tmp_path / "m.onnx")).what


def test_external_data_is_read(tmp_path: Path) -> None:
    path = save_external(tmp_path / "m.onnx", "weights.bin", tmp_path / "weights.bin")
    weight = load_float_model(path).graph.initializers["W"].const_value
    assert weight is not None
    inside = onnx.numpy_helper.to_array(linear().graph.initializer[0])
    np.testing.assert_array_equal(weight.numpy(), inside)


def test_missing_external_data_names_tensor_and_file(tmp_path: Path) -> None:
    error = fault(save_external(tmp_path / "m.onnx", "weights.bin"))
    assert "weights.bin" in error.what
    assert "'W'" in error.where


def test_truncated_external_data(tmp_path: Path) -> None:
    path = save_external(tmp_path / "m.onnx", "weights.bin", tmp_path / "weights.bin")
    (tmp_path / "weights.bin").write_bytes(b"short")
    assert "truncated" in fault(path).what


@pytest.mark.parametrize(
    "location", ["../secret.bin", "sub/../../secret.bin", "/etc/passwd", "..\\secret.bin", "C:\\x", ""]
)
def test_external_data_must_stay_in_the_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    error = fault(save_external(folder / "m.onnx", location, tmp_path / "secret.bin"))
    assert "leaves the model's folder" in error.what
    assert "'W'" in error.where


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = save_external(folder / "m.onnx", "weights.bin", tmp_path / "secret.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "secret.bin")
    assert "leaves the model's folder" in fault(path).what


def test_a_download_cache_of_links_is_accepted(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    save_external(blobs / "aaa", "weights.bin", blobs / "bbb")
    (snapshot / "m.onnx").symlink_to(blobs / "aaa")
    (snapshot / "weights.bin").symlink_to(blobs / "bbb")
    assert load_float_model(snapshot / "m.onnx").graph.initializers["W"].const_value is not None


def test_unknown_operator_names_the_node(tmp_path: Path) -> None:
    model = linear(nodes=[h.make_node("Relux", ["x"], ["y"], name="the_node")])
    error = fault(save(model, tmp_path / "m.onnx"))
    assert "Relux" in error.what
    assert "the_node" in error.where
    assert "did you mean 'Relu'" in error.hint


@pytest.mark.parametrize("domain", ["my.domain", "com.microsoft", "qcompile"])
def test_unknown_operator_of_another_domain(tmp_path: Path, domain: str) -> None:
    model = linear(nodes=[h.make_node("Mine", ["x"], ["y"], name="the_node", domain=domain)])
    error = fault(save(model, tmp_path / "m.onnx"))
    assert f"{domain}::Mine" in error.what
    assert "the_node" in error.where


@pytest.mark.parametrize("domain", ["my.domain", "qcompile"])
def test_an_operator_with_its_body_is_known(tmp_path: Path, domain: str) -> None:
    model = linear(nodes=[h.make_node("Mine", ["x"], ["y"], name="the_node", domain=domain)])
    body = h.make_function(
        domain, "Mine", ["a"], ["b"], [h.make_node("Relu", ["a"], ["b"], name="r")], [h.make_opsetid("", 21)]
    )
    model.functions.append(body)
    load_float_model(save(model, tmp_path / "m.onnx"))


def test_an_unknown_operator_inside_a_function_is_found(tmp_path: Path) -> None:
    model = linear(nodes=[h.make_node("Mine", ["x"], ["y"], name="call", domain="my.domain")])
    inner = h.make_node("Nothing", ["a"], ["b"], name="inner")
    model.functions.append(h.make_function("my.domain", "Mine", ["a"], ["b"], [inner], [h.make_opsetid("", 21)]))
    error = fault(save(model, tmp_path / "m.onnx"))
    assert "Nothing" in error.what
    assert "inner" in error.where


def conditional(node: onnx.NodeProto) -> onnx.ModelProto:
    """y = relu-like(x) inside both branches of an If."""
    true = h.make_node("Constant", [], ["yes"], value=h.make_tensor("yes", T.BOOL, [], [True]), name="yes")
    branch = h.make_graph([node], "branch", [], [h.make_tensor_value_info("inner_y", T.FLOAT, None)])
    choose = h.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch, name="if")
    return linear(nodes=[true, choose])


def test_bodies_of_control_flow_are_looked_into(tmp_path: Path) -> None:
    error = fault(save(conditional(h.make_node("Nothing", ["x"], ["inner_y"], name="inner")), tmp_path / "m.onnx"))
    assert "Nothing" in error.what
    node = h.make_node("DynamicQuantizeLinear", ["x"], ["inner_y", "s", "z"], name="inner")
    error = fault(save(conditional(node), tmp_path / "m.onnx"))
    assert "quantized already" in error.what
    assert "inner" in error.where


def test_an_operator_newer_than_the_opset(tmp_path: Path) -> None:
    model = linear(opset=13, nodes=[h.make_node("Gelu", ["x"], ["y"], name="gelu")])
    error = fault(save(model, tmp_path / "m.onnx"))
    assert "does not exist in opset 13" in error.what
    assert "20" in error.hint


def test_an_operator_that_was_removed(tmp_path: Path) -> None:
    model = linear(opset=13, nodes=[h.make_node("Scatter", ["x", "x", "x"], ["y"], name="scatter")])
    assert "was removed" in fault(save(model, tmp_path / "m.onnx")).what


def test_newer_than_the_runtime(tmp_path: Path) -> None:
    error = fault(save(linear(opset=99), tmp_path / "m.onnx"))
    assert "opset 99" in error.what
    assert "ONNX Runtime" in error.what
    model = linear()
    model.ir_version = 99
    assert "IR version 99" in fault(save(model, tmp_path / "m.onnx")).what


@pytest.mark.parametrize(
    ("op_type", "domain"), [("QuantizeLinear", ""), ("QLinearMatMul", ""), ("MatMulNBits", "com.microsoft")]
)
def test_already_quantized_names_the_node(tmp_path: Path, op_type: str, domain: str) -> None:
    node = h.make_node(op_type, ["x", "W"], ["y"], name="the_node", domain=domain)
    path = save(linear(nodes=[node]), tmp_path / "m.onnx")
    error = fault(path)
    assert op_type in error.what
    assert "the_node" in error.where
    assert "float model" in error.hint
    load_model(path)


def test_a_missing_domain_import(tmp_path: Path) -> None:
    model = linear(nodes=[h.make_node("Gelu", ["x"], ["y"], name="gelu", domain="com.microsoft")])
    del model.opset_import[1:]
    assert "does not import" in fault(save(model, tmp_path / "m.onnx")).what
