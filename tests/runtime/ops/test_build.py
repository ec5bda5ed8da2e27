"""`qcompile ops build` and `qcompile ops status`: what they say when something is missing; they leave no ruins."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from qcompile.compiler.operators import catalogue
from qcompile.frontends.cli.main import app
from qcompile.runtime.ops import places, tools

HEADER = "#define ORT_API_VERSION 21\n"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["ops", *(str(a) for a in arguments)], prog_name="qcompile", env={"COLUMNS": "200"})


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing on it; its folder of programs, for what a test puts there."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("CXX", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "CUTLASS_INCLUDE", "CUSPARSELT_INCLUDE", places.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ONNXRUNTIME_INCLUDE", raising=False)
    monkeypatch.setattr(tools, "_ROOTS", ())
    monkeypatch.setattr(tools, "_CUDA_ROOT", tmp_path / "no-cuda")
    monkeypatch.setattr(tools, "_package", lambda name: [])
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(programs))
    return programs


def program(folder: Path, name: str, code: str) -> None:
    """A program that is a line of Python."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport os, sys\n{code}\n")
    path.chmod(0o755)


@pytest.fixture
def equipped(bare: Path, tmp_path: Path) -> Path:
    """Everything for a CPU build, made up; `cmake --build` fails with what stands in the file `said`."""
    program(
        bare,
        "cmake",
        f"""
if "--version" in sys.argv: print("cmake version 3.30.1")
if "--build" in sys.argv: sys.exit(open({str(tmp_path / "said")!r}).read())""",
    )
    program(bare, "ninja", "")
    program(bare, "c++", "")
    (tmp_path / "headers").mkdir()
    (tmp_path / "headers" / "onnxruntime_c_api.h").write_text(HEADER)
    return tmp_path / "headers"


def test_everything_missing_is_named_with_a_way_to_get_it() -> None:
    result = run("build", "--cuda")
    assert result.exit_code == 1
    for what in (
        "CMake is missing (pip install cmake)",
        "neither Ninja nor Make is there (pip install ninja)",
        "a C++17 compiler is missing (Debian: apt install g++)",
        "ONNX Runtime's C headers are missing (Debian: apt install libonnxruntime-dev",
        "CUDA's compiler, nvcc, is missing",
        "CUTLASS's headers are missing (pip install nvidia-cutlass",
        "cuSPARSELt's headers are missing (pip install nvidia-cusparselt-cu13",
        "--no-cuda builds the CPU kernels alone",
    ):
        assert what in result.stderr
    assert not places.cache().exists()


def test_without_nvcc_cuda_is_not_asked_for() -> None:
    result = run("build")
    assert result.exit_code == 1
    assert "nvcc" not in result.stderr
    assert "CUTLASS" not in result.stderr


def test_a_folder_without_headers(tmp_path: Path) -> None:
    result = run("build", "--ort-headers", tmp_path)
    assert result.exit_code == 2
    assert "this folder has no onnxruntime_c_api.h" in result.stderr


@pytest.mark.parametrize("version", [17, 999])
def test_headers_of_another_runtime(version: int, equipped: Path) -> None:
    (equipped / "onnxruntime_c_api.h").write_text(HEADER.replace("21", str(version)))
    result = run("build", "--no-cuda", "--ort-headers", equipped)
    assert result.exit_code == 1
    assert f"are of ONNX Runtime 1.{version}; any from 1.18 to 1." in result.stderr


def test_old_tools(bare: Path, equipped: Path, tmp_path: Path) -> None:
    program(bare, "cmake", "print('cmake version 3.18.4')")
    program(bare, "nvcc", "print('Cuda compilation tools, release 12.4, V12.4.131')")
    result = run("build", "--ort-headers", equipped)
    assert result.exit_code == 1
    assert "CMake 3.18 is too old, 3.24 is needed (pip install cmake)" in result.stderr
    assert "CUDA 12.4 is too old, 12.8 is needed" in result.stderr


def test_a_failed_build_shows_the_lines_that_matter(equipped: Path, tmp_path: Path) -> None:
    (tmp_path / "said").write_text("[1/9] fine\nlinear.cc:7:3: error: expected ';'\nmore\n[2/9] fine\n")
    result = run("build", "--ort-headers", equipped)
    assert result.exit_code == 1
    assert "building the library failed:\nlinear.cc:7:3: error: expected ';'\n" in result.stderr
    log = places.cache() / "build.log"
    assert f"all lines are in {log}" in result.stderr
    assert "[2/9] fine" in log.read_text()
    assert os.listdir(places.cache()) == ["build.log"]


def test_a_compiler_that_nvcc_refuses(equipped: Path, tmp_path: Path) -> None:
    (tmp_path / "said").write_text("host_config.h: #error -- unsupported GNU version! gcc versions later than 15\n")
    assert "CUDAHOSTCXX=g++-13" in run("build", "--ort-headers", equipped).stderr


def test_status_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("status", "--json")
    assert result.exit_code == 0
    why = "no library of kernels is here: qcompile ops build"
    assert json.loads(result.stdout) == {"library": None, "loads": False, "why": why}
    assert why in run("status").stdout
    monkeypatch.setenv(places.VARIABLE, "off")
    assert "QCOMPILE_OPS is off" in run("status").stdout


def test_status_of_a_library(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(places.VARIABLE, str(library))
    found = json.loads(run("status", "--json").stdout)
    assert found["loads"] is True
    assert found["found"] == "QCOMPILE_OPS"
    assert "LinearW8A8BiasGeluFp16" in found["operators"]["cpu"]
    assert found["cuda"] is None
    assert f"{len(catalogue())} on cpu, 0 on cuda" in run("status").stdout


def test_status_of_a_broken_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.so").write_bytes(b"nothing")
    monkeypatch.setenv(places.VARIABLE, str(tmp_path / "x.so"))
    found = json.loads(run("status", "--json").stdout)
    assert found["loads"] is False
    assert "does not load" in found["why"]
