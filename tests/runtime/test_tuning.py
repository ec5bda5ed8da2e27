"""Tuning, on a library that is a few lines of C: its times are made up, so the fastest configuration is known."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.compiler.operators import linear_e4m3, linear_w8a8
from qcompile.errors import TargetError
from qcompile.runtime.ops import tuning
from qcompile.runtime.ops.tuning import Shape
from tests.operators.operands import CONSTANTS, operands
from tests.operators.running import model_of

# Configuration 0 refuses n = 8, 1 is fast for few rows, 2 for many. "Told" remembers the last choice.
_SOURCE = """
#include <stdint.h>
#include <string.h>
static const char* names[] = {"small", "flat", "tall"};
static int chosen;
int told_m, told_n, told_k, told_configuration = -1;
const char* qcompile_device(void) { return "Made Up 1/2, driver 13000, CUDA 13000"; }
const char* qcompile_build(void) { return "onnxruntime 21, cuda 13.0"; }
const char* qcompile_configuration(const char* family, int i) {
  return strcmp(family, "LinearW8A8") == 0 && i >= 0 && i < 3 ? names[i] : 0;
}
int qcompile_default(const char* family, int64_t m, int64_t n, int64_t k) { return 1; }
int64_t qcompile_row_bucket(int64_t m) { int64_t b = 1; while (b < m) b *= 2; return b; }
void qcompile_choose(const char* family, int64_t m, int64_t n, int64_t k, int i) {
  chosen = i, told_m = m, told_n = n, told_k = k, told_configuration = i;
}
const char* qcompile_measure(const char* family, int64_t m, int64_t n, int64_t k, double* us) {
  if (chosen == 0 && n == 8) return "cannot";
  *us = chosen == 0 ? 50 : chosen == 1 ? 10.0 * m : 100;
  return 0;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _compiled(_SOURCE, tmp_path_factory.mktemp("library"))


def _compiled(source: str, folder: Path) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    (folder / "made_up.c").write_text(source)
    made = folder / "libmade_up.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", str(made), str(folder / "made_up.c")], check=True)
    return made


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_the_fastest_is_kept_beside_what_was_kept_before(library: Path) -> None:
    told: list[str] = []
    path, found = tuning.tune(
        library, [Shape("LinearW8A8", 16, 32, m) for m in (1, 3, 4)], lambda choice: told.append(choice.configuration)
    )
    assert told == ["flat", "flat"], "3 and 4 rows are tuned together"
    assert (found[0].microseconds, found[0].rule) == (10, "flat")
    _, later = tuning.tune(library, [Shape("LinearW8A8", 8, 32, 64), Shape("LinearW8A8", 16, 32, 64)])
    assert [(c.shape.n, c.configuration, c.microseconds, c.rule_microseconds) for c in later] == [
        (8, "tall", 100, 640),
        (16, "small", 50, 640),
    ]
    assert [(c.shape.n, c.shape.m) for c in tuning.read(path)] == [(8, 64), (16, 1), (16, 4), (16, 64)]
    assert json.loads(path.read_text())["device"].startswith("Made Up")
    assert path.name == "Made-Up-1-2-driver-13000-CUDA-13000-onnxruntime-21-cuda-13.0.json"
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no temporary file stays"


def test_what_was_kept_is_told_to_the_library(library: Path) -> None:
    import ctypes

    assert tuning.apply(library) == 0
    path, _ = tuning.tune(library, [Shape("LinearW8A8", 16, 32, 64)])
    opened = ctypes.CDLL(str(library))
    told = ctypes.c_int.in_dll(opened, "told_configuration")
    told.value = -1
    assert tuning.apply(library) == 1
    assert told.value == 0
    assert ctypes.c_int.in_dll(opened, "told_m").value == 64
    content = json.loads(path.read_text())
    content["choices"][0]["configuration"] = "of another build"
    path.write_text(json.dumps(content))
    assert tuning.apply(library) == 0


@pytest.mark.parametrize("content", ["", "{}", '{"choices": [1]}', '{"choices": [{"shape": {"m": 1}}]}'])
def test_a_damaged_file_counts_as_none(library: Path, content: str) -> None:
    path, _ = tuning.tune(library, [Shape("LinearW8A8", 16, 32, 64)])
    path.write_text(content)
    assert tuning.apply(library) == 0
    tuning.tune(library, [Shape("LinearW8A8", 16, 32, 1)])
    assert len(tuning.read(path)) == 1


def test_a_family_without_a_kernel_on_the_device(library: Path) -> None:
    with pytest.raises(TargetError, match="no kernel of LinearE4M3 for M 64, N 16, K 32 on Made Up"):
        tuning.tune(library, [Shape("LinearE4M3", 16, 32, 64)])


def test_a_library_without_cuda(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="none for CUDA"):
        tuning.tune(_compiled("int nothing;", tmp_path), [Shape("LinearW8A8", 16, 32, 64)])


def test_shapes_of_a_model(tmp_path: Path) -> None:
    files = []
    for operator in (linear_w8a8(bias=True), linear_e4m3(dtype=ir.DataType.FLOAT16)):
        inputs = operands(operator, (4,), 24, 64)
        fixed = {name: array for name, array in inputs.items() if name in CONSTANTS}
        model = model_of(operator, {name: np.shape(array) for name, array in inputs.items()}, constants=fixed)
        files.append(tmp_path / f"{operator.name}.onnx")
        onnx.save(model, files[-1])
    assert tuning.shapes_of(files[0], (8, 1)) == [Shape("LinearW8A8", 24, 64, 1), Shape("LinearW8A8", 24, 64, 8)]
    assert tuning.shapes_of(files[1], (1,)) == [Shape("LinearE4M3", 24, 64, 1)]


def test_on_the_command_line(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from qcompile.frontends.cli.main import app

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["ops", "tune", *arguments])
        return result.exit_code, result.output

    monkeypatch.setenv("QCOMPILE_OPS", "off")
    assert run("--shape", "64,16,32") == (1, "error: there is no library of kernels\n  do: qcompile ops build --cuda\n")
    monkeypatch.setenv("QCOMPILE_OPS", str(library))
    code, text = run("--shape", "64,16,32", "--shape", "1,16,32")
    assert code == 0
    assert "1 x 16 x 32" in text.splitlines()[0]
    assert "10.0 us  flat (as before)" in text.splitlines()[0]
    assert "50.0 us  small (12.80 x as fast as flat)" in text.splitlines()[1]
    code, text = run("--shape", "64,16,32", "--json")
    assert json.loads(text)["choices"][0]["configuration"] == "small"
    assert run()[0] == 2
    assert "'64,16' is no shape" in run("--shape", "64,16")[1]


def test_cusparselt_of_a_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompile.runtime.ops import places

    library = tmp_path / "nvidia" / "cusparselt" / "lib" / "libcusparseLt.so.0"
    library.parent.mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert places.cusparselt() != library
    library.touch()
    assert places.cusparselt() == library
