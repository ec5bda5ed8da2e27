"""Machines that lack something for a GPU: what they lack is named, with how to get it, and the next provider runs.

The texts of the loader and of ONNX Runtime are real: its own libraries are loaded, beside a driver that is a stub.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import onnx
import pytest

from qcompile.runtime.engines import digest
from qcompile.runtime.providers import CPU, CUDA, TENSORRT
from qcompile.runtime.tensorrt_rtx import NAME as RTX
from tests.frontends.models import linear, save
from tests.runtime import machines
from tests.targets import cuda_stub
from tests.verification.qdq_models import plain

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None or cuda_stub.provider_library() is None,
    reason="needs gcc and ONNX Runtime with its CUDA provider",
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return machines.driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(linear(), tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Libraries of other versions than ONNX Runtime was linked with."""
    folder = tmp_path_factory.mktemp("older")
    for soname in ("libcublas.so.12", "libcublasLt.so.12"):
        (folder / soname).touch()
    return folder


def test_what_the_driver_says(driver: Path, older: Path, model: Path, tmp_path: Path) -> None:
    machines_ = [{"GPUS": "0"}, {"DRIVER": "12080"}, {}, {"CAPABILITY": "86", "DRIVER": "13010"}]
    asked = [json.dumps(answers) for answers in machines_]
    found = machines.ask("drivers", [driver, older], {"XDG_CACHE_HOME": str(tmp_path)}, str(model), *asked)
    no_gpu, old, hopper, ampere = found
    assert no_gpu[CUDA] == no_gpu[TENSORRT] == "the NVIDIA driver finds no GPU"
    assert no_gpu["folder"] is None
    assert old[CUDA] == "the NVIDIA driver is for CUDA 12.8, ONNX Runtime for CUDA 13: update the driver"
    assert hopper[CUDA].startswith("CUDA 13 is missing (libcublas")
    assert "CUDA 12 is here: pip install 'onnxruntime-gpu[cuda,cudnn]'" in hopper[CUDA]
    assert hopper["gpu"] == "NVIDIA Stub 1000, compute capability 9.0, driver for CUDA 13.0"
    kept = tmp_path / "qcompile" / "engines"
    assert Path(hopper["folder"]) == kept / "NVIDIA-Stub-1000-sm90-cuda13.0-tensorrt" / digest(model)
    assert Path(ampere["folder"]) == kept / "NVIDIA-Stub-1000-sm86-cuda13.1-tensorrt" / digest(model)


def test_no_libraries_at_all(driver: Path, model: Path) -> None:
    said = machines.ask("session", [driver], {}, str(model), "tensorrt", "cuda")
    assert said["provider"] == CPU
    for provider in (TENSORRT, CUDA):
        assert f"{provider} does not load: CUDA 13 is missing (libcublas" in said["why"]
    [warned] = said["warned"]
    assert warned.endswith("running on CPUExecutionProvider")


@pytest.fixture(scope="module")
def cuda(driver: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of a stub of CUDA, without cuDNN and TensorRT."""
    if cuda_stub.why_not():
        pytest.skip(cuda_stub.why_not())
    folder = tmp_path_factory.mktemp("cuda")
    cuda_stub.build(folder)
    (folder / "libcuda.so.1").unlink()
    library = cuda_stub.provider_library()
    assert library is not None
    return [folder, driver, library.parent]


@pytest.mark.cuda_stub
def test_tensorrt_that_is_missing_gives_way_to_cuda(cuda: list[Path], model: Path, tmp_path: Path) -> None:
    (tmp_path / "libnvinfer.so.11").touch()
    said = machines.ask("session", [*cuda, tmp_path], {}, str(model), "tensorrt", "cuda")
    assert said["provider"] == CUDA
    assert "TensorRT 10 is missing (libnvinfer.so.10), TensorRT 11 is here" in said["why"]
    assert "pip install 'tensorrt-cu13==10.14.*'" in said["why"]


@pytest.mark.cuda_stub
def test_a_convolution_without_cudnn(cuda: list[Path], tmp_path: Path) -> None:
    onnx.save(plain(), tmp_path / "m.onnx")
    said = machines.ask("session", cuda, {}, str(tmp_path / "m.onnx"), "cuda")
    assert said["provider"] == CUDA
    assert "cuDNN is unavailable or disabled for CUDA Execution Provider" in said["error"]
    assert said["error"].endswith("(pip install nvidia-cudnn-cu13)")


@pytest.mark.cuda_stub
def test_a_cudnn_that_is_broken(cuda: list[Path], model: Path, tmp_path: Path) -> None:
    machines.compile_library("int cudnnCreate(void) { return 0; }", tmp_path, "libcudnn.so.9")
    said = machines.ask("session", [*cuda, tmp_path], {}, str(model), "cuda")
    assert said["provider"] == CPU
    assert "does not load: cuDNN is unavailable for CUDA Execution Provider: dlsym failed" in said["why"]


def test_a_plugin_that_does_not_load(driver: Path, model: Path, tmp_path: Path) -> None:
    """With a package that stands in for TensorRT-RTX's, of a library that needs what is not here."""
    machines.compile_library("", tmp_path, "libmissing.so.1")
    machines.compile_library("", tmp_path, "libplugin.so", "-Wl,--no-as-needed", str(tmp_path / "libmissing.so.1"))
    (tmp_path / "libmissing.so.1").unlink()
    package = f"def get_library_path():\n    return {str(tmp_path / 'libplugin.so')!r}\n"
    (tmp_path / "onnxruntime_ep_nv_tensorrt_rtx.py").write_text(package)
    environment = {"CAPABILITY": "89", "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    said = machines.ask("session", [driver], environment, str(model), "tensorrt-rtx")
    assert said["provider"] == CPU
    assert f"{RTX} does not load: libmissing.so.1: cannot open shared object file" in said["why"]
