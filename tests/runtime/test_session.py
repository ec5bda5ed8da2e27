"""A session: arrays in and out, clear errors, and the way down when a provider does not load."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnxruntime import OrtValue

from qcompile.compiler.artifact import write_model
from qcompile.errors import DataError, ModelError, UsageError
from qcompile.runtime import arrays
from qcompile.runtime.engines import EngineCache
from qcompile.runtime.providers import CPU, CUDA, TENSORRT, candidates, provider_options, why_not_loaded
from qcompile.runtime.session import Session
from tests.frontends.models import WIDTH, linear, save, two_inputs

no_gpu = pytest.mark.skipif(not why_not_loaded(CUDA), reason="this machine has a GPU")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(linear(), tmp_path_factory.mktemp("session") / "m.onnx")


@pytest.fixture(scope="module")
def session(path: Path) -> Session:
    return Session(path, ["cpu"])


def expected(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import onnx

    weight, bias = (onnx.numpy_helper.to_array(t) for t in linear().graph.initializer)
    return np.maximum(x @ weight + bias, 0)  # type: ignore[no-any-return]


def test_numpy_in_numpy_out(session: Session) -> None:
    x = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)
    outputs = session({"x": x})
    assert list(outputs) == ["y"]
    assert isinstance(outputs["y"], np.ndarray)
    np.testing.assert_allclose(outputs["y"], expected(x), rtol=1e-5, atol=1e-6)


def test_torch_in_torch_out(session: Session) -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(3, WIDTH, requires_grad=True)
    y = session({"x": x})["y"]
    assert isinstance(y, torch.Tensor)
    np.testing.assert_allclose(y.numpy(), expected(x.detach().numpy()), rtol=1e-4, atol=1e-5)
    transposed = torch.randn(WIDTH, 3).T
    np.testing.assert_allclose(
        session({"x": transposed})["y"].numpy(), expected(transposed.numpy()), rtol=1e-4, atol=1e-5
    )


def test_several_inputs_of_other_types(tmp_path: Path) -> None:
    two = Session(save(two_inputs(), tmp_path / "m.onnx"), ["cpu"])
    mask = np.array([[1, 0, 1]], np.float32)
    y = two({"tokens": np.zeros((1, 3), np.int64), "mask": mask})["y"]
    np.testing.assert_array_equal(y[..., 0], mask)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"z": np.zeros((1, WIDTH), np.float32)}, "no input 'z'"),
        ({}, "inputs are missing: x float32"),
        ({"x": np.zeros((1, WIDTH))}, "float64, the model wants float32"),
        ({"x": np.zeros((1, WIDTH + 1), np.float32)}, r"shape \[1, 9\], the model wants x float32 \[\?, 8\]"),
        ({"x": np.zeros(WIDTH, np.float32)}, "shape"),
    ],
)
def test_wrong_inputs(session: Session, inputs: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        session(inputs)


def test_files_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        Session(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_text("text")
    with pytest.raises(ModelError, match="refuses the model"):
        Session(tmp_path / "m.onnx", ["cpu"])


def test_wrong_arguments(path: Path) -> None:
    for arguments in ({"providers": ["gpu"]}, {"providers": []}, {"threads": 0}, {"memory_limit": 0}, {"stream": "0"}):
        with pytest.raises(UsageError):
            Session(path, **arguments)  # type: ignore[arg-type]


def test_threads(path: Path) -> None:
    assert Session(path, ["cpu"], threads=1)({"x": np.zeros((1, WIDTH), np.float32)})["y"].shape == (1, WIDTH)


@no_gpu
@pytest.mark.parametrize("asked", ["cuda", "tensorrt"])
def test_a_provider_that_does_not_load_gives_way(path: Path, asked: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="does not load.*running on CPUExecutionProvider"):
        session = Session(path, [asked])
    assert session.provider == CPU
    assert "does not load: no NVIDIA driver" in session.why or "finds no GPU" in session.why
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert session({"x": np.zeros((1, WIDTH), np.float32)})["y"].shape == (1, WIDTH)


def test_an_artifact_for_the_cpu_asks_for_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    write_model(ir.from_proto(linear()), path, {"target": "cpu", "recipe": {"name": "int8-static"}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = Session(path)
    assert session.provider == CPU
    assert "compiled for the CPU" in session.why
    described = session.describe()
    assert "int8-static" in described
    assert "x float32 [?, 8]" in described
    assert session.manifest is not None


def test_the_order_of_candidates() -> None:
    def names(asked: list[str] | None, target: str | None) -> list[str]:
        return [c.provider for c in candidates(asked, {"target": target} if target else None)]

    assert names(None, "cpu") == [CPU]
    assert TENSORRT not in names(None, None)
    assert TENSORRT not in names(None, "cuda")
    assert names(None, "tensorrt")[-1] == CPU
    assert names(["CPUExecutionProvider"], "tensorrt") == [CPU]


def test_engine_cache_options(tmp_path: Path) -> None:
    engines = EngineCache(tmp_path / "engines", tmp_path / "timing")
    options = provider_options(TENSORRT, 1, engines)
    assert options["trt_engine_cache_path"] == str(engines.engines)
    assert options["trt_timing_cache_path"] == str(engines.timing)
    assert engines.engines.is_dir()
    assert engines.timing.is_dir()
    assert options["device_id"] == "1"
    assert provider_options(CPU, 1, engines) == {}
    assert "0 engines kept" in str(engines)


def test_arrays_are_shared_not_copied() -> None:
    torch = pytest.importorskip("torch")
    for kept in (
        torch.arange(6, dtype=torch.float32),
        torch.tensor([True, False]),
        torch.ones(2, dtype=torch.bfloat16),
    ):
        assert arrays.memory(kept).address == kept.data_ptr()
        dtype = arrays.dtype_name(kept)
        value = OrtValue.from_dlpack(kept.view(torch.uint8) if dtype == "bool" else kept)
        back = arrays.from_ort(value, torch.Tensor, dtype)
        assert back.data_ptr() == kept.data_ptr()
        assert back.dtype == kept.dtype
        assert torch.equal(back, kept)
    mine = np.ones(3, np.float32)
    assert np.shares_memory(arrays.to_numpy(torch.from_numpy(mine)), mine)
    assert arrays.from_numpy(mine, torch.ones(1)).data_ptr() == arrays.memory(mine).address == mine.ctypes.data
    assert not arrays.on_device(torch.ones(1))


def test_an_input_on_a_gpu_for_a_model_on_the_cpu(session: Session) -> None:
    class OnGpu:
        dtype, shape = np.dtype(np.float32), (1, WIDTH)

        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

    with pytest.raises(DataError, match="lies on a GPU, but the model runs on the CPU"):
        session({"x": OnGpu()})


@pytest.mark.gpu
@pytest.mark.skipif(bool(why_not_loaded(CUDA)), reason="needs a GPU and CUDA's libraries")
def test_cuda_tensors_stay_on_the_gpu(path: Path) -> None:
    torch = pytest.importorskip("torch")
    session = Session(path, ["cuda"])
    x = torch.randn(3, WIDTH, device="cuda")
    y = session({"x": x})["y"]
    assert y.device == x.device
    np.testing.assert_allclose(y.cpu().numpy(), expected(x.cpu().numpy()), rtol=1e-2, atol=1e-2)
