"""Modules of adapters find their layers by the names that exporters leave."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.lora.adapter import Adapter, Update
from qcompile.compiler.lora.places import Place, Places, places
from qcompile.errors import DataError
from tests.passes.harness import model_of

_TEXT = """<ir_version: 10, opset_import: ["": 20]> g (float[B,4] x) => (float[B,4] y)
  <float[4,4] w1 = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}, float[4,4] w2 = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}>
{ a = MatMul (x, w1) b = MatMul (a, w2) y = Relu (b) }"""


def _named(first: str, second: str, weights: tuple[str, str] = ("w1", "w2")) -> Places:
    model = model_of(_TEXT)
    for node, name, weight in zip(model.graph, (first, second), weights, strict=False):
        node.name = name
        node.inputs[1].name = weight  # type: ignore[union-attr]
    return Places(places(model))


def _adapter(*modules: str) -> Adapter:
    ones = np.ones((1, 4), np.float32)
    return Adapter("it", {module: Update(module, ones, ones.T, 1.0) for module in modules}, {})


def _names(found: dict[str, Place]) -> list[str]:
    return [str(place.node.name) for place in found.values()]


@pytest.mark.parametrize(
    ("first", "second", "module"),
    [
        ("/model/layers.0/self_attn/q_proj/MatMul", "/model/layers.1/self_attn/q_proj/MatMul", "model.layers.1."),
        ("/layers.0/self_attn/q_proj/MatMul", "/layers.1/self_attn/q_proj/MatMul", "model.layers.1."),
        ("/m/model/layers.0/attn/q_proj/MatMul", "/m/model/layers.1/attn/q_proj/MatMul", "model.layers.1."),
        ("/layers.1/layers.0/self_attn/q_proj/MatMul", "/layers.0/layers.1/self_attn/q_proj/MatMul_int4", "layers.1."),
    ],
)
def test_by_the_name_of_the_node(first: str, second: str, module: str) -> None:
    """An export may begin above or below the model that was trained."""
    wanted = module + "self_attn.q_proj"
    assert _names(_named(first, second).of(_adapter(wanted))) == [second]


def test_by_the_name_of_the_weight() -> None:
    found = _named("node_1", "node_2", ("model.fc1.weight", "model.fc2.weight"))
    assert _names(found.of(_adapter("model.fc2", "model.fc1"))) == ["node_2", "node_1"]


def test_by_the_scopes_of_torch() -> None:
    model = model_of(_TEXT)
    for i, node in enumerate(list(model.graph)[:2]):
        node.name = f"node_{i}"
        node.metadata_props["pkg.torch.onnx.name_scopes"] = str(["", "model", f"model.fc{i}", f"linear_{i}"])
    assert _names(Places(places(model)).of(_adapter("model.fc1"))) == ["node_1"]


def test_missing_modules_are_all_named() -> None:
    found = _named("/model/fc1/MatMul", "/model/fc2/MatMul")
    with pytest.raises(
        DataError, match=r"2 of 3 modules of adapter 'it'.*model\.fc3 \(not found\); model\.fc4 \(not found\)"
    ) as error:
        found.of(_adapter("model.fc3", "model.fc1", "model.fc4"))
    assert "nearest of 2 layers of the model is '/model/fc" in error.value.hint


def test_the_whole_path_wins() -> None:
    """A layer at the top has nothing in front of its name to tell it from others."""
    found = _named("/fc/MatMul", "/a/fc/MatMul")
    assert _names(found.of(_adapter("fc"))) == ["/fc/MatMul"]
    assert _names(_named("/blk/q/MatMul", "/MatMul").of(_adapter("/MatMul"))) == ["/MatMul"]


def test_two_layers_of_one_name() -> None:
    found = _named("/a/fc/MatMul", "/b/fc/MatMul")
    with pytest.raises(DataError, match=r"fc \(is the name of '/a/fc/MatMul' \(4 x 4\) and '/b/fc/MatMul'"):
        found.of(_adapter("fc"))


def test_a_path_without_words() -> None:
    with pytest.raises(DataError, match=r"1 of 1 modules"):
        _named("/model/fc1/MatMul", "/model/fc2/MatMul").of(_adapter(""))


def test_two_modules_of_one_layer() -> None:
    with pytest.raises(DataError, match=r"modules 'a\.fc' and 'fc' of adapter 'it' both fit layer '/a/fc/MatMul'"):
        _named("/a/fc/MatMul", "/b/other/MatMul").of(_adapter("a.fc", "fc"))


def test_an_input_with_a_default_value_is_no_weight() -> None:
    model = model_of(_TEXT)
    model.graph.inputs.append(model.graph.initializers["w1"])
    assert [place.weight.name for place in places(model)] == ["w2"]
    assert isinstance(model.graph.inputs[1], ir.Value)
