"""The cache of engines: one folder for each artifact, and options that point to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.compiler.artifact import write_model
from qcompile.errors import ModelError, TargetError
from qcompile.runtime import providers, tensorrt_rtx
from qcompile.runtime.engines import EngineCache, digest
from qcompile.runtime.gpu import Gpu
from qcompile.runtime.providers import CPU, CUDA, TENSORRT, candidates, compiled_options
from tests.frontends.models import linear, save

MADE = {"target": "tensorrt"}


def test_the_digest_is_that_of_all_bytes(tmp_path: Path) -> None:
    first = save(linear(), tmp_path / "a.onnx")
    same = save(linear(), tmp_path / "b.onnx")
    assert digest(first) == digest(same)
    other = linear()
    weight = onnx.numpy_helper.to_array(other.graph.initializer[0]).copy()
    weight.flat[0] += 1
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, other.graph.initializer[0].name))
    assert digest(save(other, tmp_path / "c.onnx")) != digest(first)


def test_external_weights_count(tmp_path: Path) -> None:
    def external() -> Path:
        path = tmp_path / "m.onnx"
        onnx.save(linear(), path, save_as_external_data=True, location="w.data", size_threshold=0)
        return path

    path = external()
    before = digest(path)
    data = np.fromfile(tmp_path / "w.data", np.uint8)
    data[0] ^= 1
    data.tofile(tmp_path / "w.data")
    assert digest(path) != before


def test_options_of_each_builder(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines", tmp_path / "timing")
    assert cache.options(tensorrt_rtx.NAME) == {"nv_runtime_cache_path": str(cache.engines)}
    (cache.engines / "a_sm90.engine").write_bytes(bytes(1 << 20))
    (cache.engines / "a_sm90.profile").touch()
    assert str(cache) == f"1 engine kept (1.0 MiB) in {cache.engines}"


def test_options_that_an_artifact_was_compiled_for(tmp_path: Path) -> None:
    options = {TENSORRT: {"trt_int8_enable": "1"}}
    write_model(ir.from_proto(linear()), tmp_path / "m.onnx", {"target": "tensorrt", "provider_options": options})
    assert compiled_options(tmp_path / "m.onnx", TENSORRT) == {"trt_int8_enable": "1"}
    assert compiled_options(tmp_path / "m.onnx", CUDA) == {}
    assert compiled_options(save(linear(), tmp_path / "float.onnx"), TENSORRT) == {}
    with pytest.raises(TargetError, match=f"{tensorrt_rtx.NAME} cannot run .* compiled for {TENSORRT}"):
        compiled_options(tmp_path / "m.onnx", tensorrt_rtx.NAME)


def test_the_plugin_comes_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_rtx, "installed", lambda: True)
    assert [c.provider for c in candidates(None, MADE)] == [TENSORRT, tensorrt_rtx.NAME, CUDA, CPU]
    only = MADE | {"provider_options": {tensorrt_rtx.NAME: {}}}
    assert [c.provider for c in candidates(None, only)] == [tensorrt_rtx.NAME, CUDA, CPU]
    assert [c.provider for c in candidates(["tensorrt-rtx"], None)] == [tensorrt_rtx.NAME, CPU]
    monkeypatch.setattr(tensorrt_rtx, "installed", lambda: False)
    assert tensorrt_rtx.NAME not in [c.provider for c in candidates(None, MADE)]
    assert "pip install onnxruntime-ep-nv-tensorrt-rtx-cu13" in tensorrt_rtx.why_not_loaded()


@pytest.mark.parametrize(
    ("capability", "runs"), [((8, 0), False), ((8, 6), True), ((8, 9), True), ((9, 0), False), ((12, 0), True)]
)
def test_gpus_of_the_plugin(capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("NVIDIA X", capability, (13, 0))
    monkeypatch.setattr(tensorrt_rtx, "installed", lambda: True)
    monkeypatch.setattr(tensorrt_rtx, "why_no_gpu", lambda: "")
    monkeypatch.setattr(tensorrt_rtx, "find_gpu", lambda _: gpu)
    assert tensorrt_rtx.why_not_loaded() == ("" if runs else f"it has no kernels for {gpu}")


@pytest.mark.parametrize(
    ("said", "error", "expected"),
    [
        (
            "[ONNXRuntimeError] : 11 : EP_FAIL : Non-zero status code returned while running TRTKernel_graph_g_1 node. "
            "Name:'TRTKernel' Status Message: TensorRT EP failed to create engine from network for fused node: g_1",
            TargetError,
            "builds no engine: TensorRT EP failed to create engine from network for fused node: g_1",
        ),
        ("[ONNXRuntimeError] : 10 : INVALID_GRAPH : no such operator", ModelError, "refuses the model: no such"),
    ],
)
def test_an_engine_that_is_not_built_lets_the_next_provider_try(
    said: str, error: type[Exception], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    monkeypatch.setattr(providers, "why_not_loaded", lambda _: "")
    with pytest.raises(error, match=expected):
        providers.open_session(
            save(linear(), tmp_path / "m.onnx"), onnxruntime.SessionOptions(), TENSORRT, {"device_id": "0"}
        )
