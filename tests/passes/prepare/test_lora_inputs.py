"""Layers with inputs for adapters: nothing changes without one, and any rank is taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.lora.adapter import read_adapter
from qcompile.compiler.lora.ports import values_for
from qcompile.compiler.provenance import stamp_channels
from qcompile.errors import DataError, RecipeError
from qcompile.passes.prepare.lora_inputs import LoraInputs
from qcompile.passes.prepare.merge_lora import MergeLora
from tests.golden import assert_golden
from tests.passes.adapters import low_rank, write
from tests.passes.harness import NAMED, Arrays, assert_close, context, model_of, outputs, print_model, run

_TEXT = """<ir_version: 10, opset_import: ["": 20]>
g (float[B,4] x, int64[B] ids, float[1,2,5,5] image) => (float[B,3] y, float[B,6] z, float[B,6] t, float[1,3,3,3] c) {
  h = MatMul (x, w_a) y = Add (h, b_a) z = Gemm <transB = 1> (y, w_b, b_b) t = Gather (table, ids)
  c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (image, w_c)
}"""

_FEEDS: Arrays = {
    "x": np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32),
    "ids": np.array([3, 1], np.int64),
    "image": np.random.default_rng(2).standard_normal((1, 2, 5, 5)).astype(np.float32),
}


def _model() -> ir.Model:
    rng = np.random.default_rng(0)
    shapes = {"w_a": (4, 3), "b_a": (3,), "w_b": (6, 3), "b_b": (6,), "table": (5, 6), "w_c": (3, 2, 3, 3)}
    model = model_of(_TEXT, {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})
    for name, new in {"w_a": "m.a", "w_b": "m.b", "table": "m.t", "w_c": "m.c"}.items():
        model.graph.initializers[name].name = f"{new}.weight"
    return model


def _adapter(folder: Path, rank: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    shapes = {
        "m.t.lora_embedding_A": (rank, 5),
        "m.t.lora_embedding_B": (6, rank),
        "m.c.lora_A.weight": (rank, 2, 3, 3),
        "m.c.lora_B.weight": (3, rank, 1, 1),
    }
    tensors = low_rank("m.a", 3, 4, rank, seed) | low_rank("m.b", 6, 3, rank, seed)
    return write(
        folder, tensors | {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    )


def test_every_kind_of_layer(tmp_path: Path) -> None:
    """Without an adapter the float function is the same; with one it is that of the merged model, at any rank."""
    first, second = _adapter(tmp_path / "first", 2, 5), _adapter(tmp_path / "second", 3, 6)
    model, on = _model(), context()
    expected = outputs(model, _FEEDS)
    before = print_model(model)
    run(model, *NAMED, LoraInputs(adapters=(str(first),)), on=on)
    assert_golden("passes/lora-inputs", f"# before\n{before}\n# after\n{print_model(model, provenance=True)}")
    assert_close(expected, outputs(model, _FEEDS))
    for folder in (first, second):
        adapter = read_adapter(folder)
        merged = _model()
        run(merged, *NAMED, MergeLora(adapter=str(folder)))
        given = values_for(adapter, model.graph.inputs)
        assert_close(outputs(merged, _FEEDS), outputs(model, _FEEDS | given))
    assert "4 layers take adapters as inputs" in on.notices
    pinned = [str(node.name) for node in model.graph if ".lora" in str(node.name)]
    assert len(pinned) == 12
    assert on.plan.pinned == set(pinned) == on.plan.kept_float.keys()


def test_adapters_together_name_the_layers(tmp_path: Path) -> None:
    folders = [write(tmp_path / m, low_rank(f"m.{m}", n, k)) for m, n, k in (("a", 3, 4), ("b", 6, 3))]
    model = _model()
    run(model, *NAMED, LoraInputs(adapters=tuple(map(str, folders))))
    taken = [str(v.name) for v in model.graph.inputs if v.is_initializer()]
    assert taken == ["m.a.lora_A", "m.a.lora_B", "m.b.lora_A", "m.b.lora_B"]


def test_what_cannot_be_an_input(tmp_path: Path) -> None:
    dora = low_rank("m.a", 3, 4) | {"m.a.lora_magnitude_vector": np.ones(3, np.float32)}
    with pytest.raises(DataError, match=r"magnitudes \(DoRA\), which cannot be inputs"):
        run(_model(), *NAMED, LoraInputs(adapters=(str(write(tmp_path / "dora", dora)),)))
    whole = low_rank("m.a", 3, 4) | {"m.b.bias": np.ones(6, np.float32)}
    with pytest.raises(DataError, match=r"whole tensors, which cannot be inputs: m\.b\.bias"):
        run(_model(), *NAMED, LoraInputs(adapters=(str(write(tmp_path / "whole", whole)),)))
    with pytest.raises(DataError, match="1 of 1 modules"):
        run(_model(), *NAMED, LoraInputs(adapters=(str(write(tmp_path / "wide", low_rank("m.a", 4, 4))),)))
    with pytest.raises(RecipeError, match="no adapter"):
        run(_model(), *NAMED, LoraInputs())
    scaled, folder = _model(), str(write(tmp_path / "it", low_rank("m.a", 3, 4)))
    stamp_channels(scaled.graph[0], "smooth-quant", [])
    for adapting in (LoraInputs(adapters=(folder,)), MergeLora(adapter=folder)):
        with pytest.raises(DataError, match=r"1 of 1 layers that adapter 'it' changes .*: m\.a \(smooth-quant\)"):
            run(scaled, *NAMED, adapting)
