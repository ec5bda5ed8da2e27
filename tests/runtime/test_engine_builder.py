"""NVIDIA's builder, which needs no GPU: what it takes, what it refuses and why, and in which precision layers run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import ml_dtypes
import numpy as np
import onnx
import pytest

from qcompile.errors import ModelError, TargetError
from qcompile.runtime import engine_builder, tensorrt_rtx
from qcompile.runtime.engine_builder import build, why_no_builder
from qcompile.runtime.engine_layers import from_json
from tests.verification.qdq_models import Builder, asymmetric, plain, residual


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def fp8() -> onnx.ModelProto:
    b = Builder(signed=True)
    weight = np.random.default_rng(0).standard_normal((16, 16))
    b.constant("zero", np.array(0, ml_dtypes.float8_e4m3fn))
    b.constant("codes", weight.astype(ml_dtypes.float8_e4m3fn))
    b.constant("one", np.float32(1))
    b.node("QuantizeLinear", ["x", "one", "zero"], "q")
    b.node("DequantizeLinear", ["q", "one", "zero"], "d")
    b.node("DequantizeLinear", ["codes", "one", "zero"], "w")
    b.node("MatMul", ["d", "w"], "y")
    return b.model({"x": ["n", 16]}, ["y"])


def test_a_convolution_reads_codes(tmp_path: Path) -> None:
    built = build(saved(plain(), tmp_path))
    assert built.builder.startswith("TensorRT-RTX 1.")
    assert built.size > 0
    [product] = [layer for layer in built.layers if "n_W_dequantized" in layer.nodes]
    assert product.inputs[:2] == ("int8", "int8")
    assert "n_y" in product.nodes


def test_a_residual_add_reads_codes_of_the_shortcut(tmp_path: Path) -> None:
    layers = build(saved(residual(), tmp_path)).layers
    assert "int8" in max((layer for layer in layers if "n_y" in layer.nodes), key=lambda la: len(la.codes)).inputs


def test_fp8_and_free_dimensions(tmp_path: Path) -> None:
    path = saved(fp8(), tmp_path)
    for shapes in ({}, {"x": [3, 16]}):
        assert any(layer.codes[:2] == ("fp8", "fp8") and "n_y" in layer.nodes for layer in build(path, shapes).layers)


def test_a_node_that_breaks_a_rule(tmp_path: Path) -> None:
    built = build(saved(asymmetric(), tmp_path))
    [refusal] = built.refused
    assert refusal.node == "n_x_quantized"
    assert "Non-zero zero point is not supported" in refusal.reason
    assert not refusal.unsupported
    assert built.layers == ()


def test_an_operator_it_does_not_know(tmp_path: Path) -> None:
    b = Builder()
    b.node("Det", ["x"], "y")
    [refusal] = build(saved(b.model({"x": [4, 4]}, ["y"]), tmp_path)).refused
    assert (refusal.node, refusal.unsupported) == ("n_y", True)


def test_a_shape_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="TensorRT builds no engine: IBuilder"):
        build(saved(fp8(), tmp_path), {"x": [3, 17]})


def test_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("text")
    with pytest.raises(ModelError, match="TensorRT builds no engine"):
        build(tmp_path / "m.onnx")


def test_no_builder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_builder, "_MODULE", "no_such_module")
    assert "pip install tensorrt-rtx" in why_no_builder()
    with pytest.raises(TargetError, match="not installed"):
        build(tmp_path / "m.onnx")


def test_a_builder_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    died = subprocess.CompletedProcess([], -6, "", "terminate called\nmyelin: assertion failed\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: died)
    with pytest.raises(TargetError, match="builder ended: myelin: assertion failed"):
        build(tmp_path / "m.onnx")


def test_on_a_gpu_tensorrt_itself_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a package that stands in for TensorRT's: the flags it gets, and layers from its inspector."""
    trt = MagicMock(__version__="10.14.1")
    trt.__spec__ = object()
    trt.ILogger = object
    trt.BuilderFlag.INT8, trt.BuilderFlag.SPARSE_WEIGHTS = "int8", "sparse"
    layer = {"Name": "p", "LayerType": "gemm", "Inputs": [{"Format/Datatype": "Int8"}], "Metadata": "[ONNX Layer: p]"}
    engine = trt.Runtime().deserialize_cuda_engine()
    engine.create_engine_inspector().get_engine_information.return_value = json.dumps({"Layers": [layer]})
    trt.Builder().create_network().num_inputs = 0
    trt.Builder().build_serialized_network().nbytes = 7
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(engine_builder, "why_no_gpu", lambda: "")
    assert engine_builder._module() == "tensorrt"
    assert engine_builder._module(tensorrt_rtx.NAME) == "tensorrt_rtx_bindings", (
        "which takes codes that TensorRT's cannot"
    )
    options = {"trt_int8_enable": "1", "trt_fp16_enable": "0", "trt_sparsity_enable": "1"}
    found = engine_builder._build("m.onnx", {}, options, "tensorrt")
    assert found["builder"] == "TensorRT 10.14.1"
    assert [call.args for call in trt.Builder().create_builder_config().set_flag.call_args_list] == [
        ("int8",),
        ("sparse",),
    ]
    [layer_read] = from_json(found["layers"])
    assert (layer_read.codes, layer_read.nodes) == (("int8",), ("p",))
