"""Linear24 on CUDA, run on the CPU: its own kernels thread by thread, cuSPARSELt by a stand-in that is strict."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import qcompile.runtime.ops
from qcompile.compiler.operators import Operator, linear24, linear24_e4m3, linear24_w8a8
from tests.gpu.machine import Machine
from tests.gpu.memory import NumpyMemory
from tests.operators.linear24 import LINEAR24
from tests.operators.operands import operands
from tests.operators.reference import Array, expected

_NATIVE = Path(qcompile.runtime.ops.__path__[0]) / "native"
_EMULATOR = Path(__file__).parent / "emulator"
_TYPES = {"float32": 0, "float16": 1, "bfloat16": 2, "int8": 0}
_POISON = 0xA5
Run = Callable[[Operator, dict[str, Array]], Array]


def _compile(made: Path, *arguments: str | Path) -> ctypes.CDLL:
    # A copy of the library has statics of its own, so that it opens cuSPARSELt anew.
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fno-gnu-unique", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    folders = [f"-I{path}" for path in (_EMULATOR, _NATIVE, _NATIVE / "cuda")]
    subprocess.run(["g++", *flags, *folders, "-x", "c++", *map(str, arguments), "-o", str(made), "-ldl"], check=True)
    return ctypes.CDLL(str(made))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    made = tmp_path_factory.mktemp("linear_24") / "linear_24.so"
    _compile(made, _NATIVE / "cuda" / "linear_24.cu", _EMULATOR / "linear_24.cc")
    return made


@pytest.fixture(scope="module")
def run(library: Path) -> Run:
    """The result of an operator, the kernels with a stand-in of cuSPARSELt 0.10."""
    stand_in = library.parent / "libcusparseLt.so.0"
    _compile(stand_in, "-DEMULATED_MINOR=10", _EMULATOR / "cusparselt.cc")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("QCOMPILE_CUSPARSELT", str(stand_in))
        kernel = ctypes.CDLL(str(library))
        _call(kernel, linear24(), operands(linear24(), (16,), 16, 32))  # opens the stand-in
    return lambda operator, inputs: _call(kernel, operator, inputs)


def _call(kernel: ctypes.CDLL, operator: Operator, inputs: dict[str, Array]) -> Array:
    """Raises AssertionError with what the kernel says."""
    memory = {name: NumpyMemory(array.nbytes) for name, array in inputs.items()}
    for name, array in inputs.items():
        memory[name].write(array.tobytes(), 0xFF)
    x = inputs["x"] if "x" in inputs else inputs["x_q"]
    n, k = inputs["w"].shape
    (result,) = operator.outputs
    dtype, shape = np.dtype(result.dtype.numpy()), (*x.shape[:-1], n)
    y = NumpyMemory(int(np.prod(shape)) * dtype.itemsize)
    y.write(bytes([_POISON]) * y.size, _POISON)

    def at(name: str) -> ctypes.c_void_p:
        return ctypes.c_void_p(memory[name].address if name in memory else None)

    activation = next((i for i, name in enumerate(("Relu", "Gelu", "Silu"), 1) if name in operator.name), 0)
    kind = 0 if "x" in inputs else 2 if "E4M3" in operator.name else 1
    sizes = [ctypes.c_int64(size) for size in (x.size // k, n, k)]
    per_row = ctypes.c_bool("x_scale" in inputs and inputs["x_scale"].ndim > 1)
    codes = [at("x" if kind == 0 else "x_q"), at("x_scale"), per_row, at("w"), at("w_scale"), at("bias")]
    form = [ctypes.c_int(activation), ctypes.c_int(_TYPES[dtype.name]), at("y_scale"), ctypes.c_void_p(y.address)]
    kernel.linear_24.restype = ctypes.c_char_p
    error = kernel.linear_24(ctypes.c_int(kind), *sizes, *codes, *form)
    assert error is None, error.decode()
    return np.frombuffer(y.take(_POISON), dtype).reshape(shape)


@pytest.mark.parametrize(("rows", "n", "k"), [((16,), 32, 32), ((1,), 96, 64), ((2, 5), 16, 96), ((33,), 48, 32)])
@pytest.mark.parametrize("operator", LINEAR24, ids=lambda operator: operator.name)
@pytest.mark.parametrize("static", [False, True], ids=["", "static"])
def test_results(run: Run, operator: Operator, static: bool, rows: tuple[int, ...], n: int, k: int) -> None:
    inputs = operands(operator, rows, n, k, static=static)
    accumulation = Machine("cuda", None).accumulation(operator, inputs)
    (right,) = expected(operator, inputs, accumulation=accumulation).values()
    right.check(run(operator, inputs), operator.name)


@pytest.mark.parametrize("operator", [linear24(), linear24_w8a8(), linear24_e4m3()], ids=lambda o: o.name)
def test_the_first_row_without_the_pattern_is_named(run: Run, operator: Operator) -> None:
    inputs = operands(operator, (16,), 32, 64)
    w = np.zeros((32, 64), np.float32)
    w[:, ::2] = 1
    w[5, 5] = -0.0  # a zero all the same
    w[20, 40:43] = 1
    w[9, 60:64] = 1
    inputs["w"] = w.astype(inputs["w"].dtype)
    with pytest.raises(AssertionError, match=r"row 9 of the weight \[32, 64\] has more than two values"):
        run(operator, inputs)


def test_a_shape_off_the_alignment_is_refused(run: Run) -> None:
    with pytest.raises(AssertionError, match=r"a weight \[32, 48\] has no 2:4 kernel"):
        run(linear24(), operands(linear24(), (16,), 32, 48))
    with pytest.raises(AssertionError, match=r"cuSPARSELt failed at taking a weight \[20, 64\]|N must be"):
        run(linear24(), operands(linear24(), (16,), 20, 64))


@pytest.mark.parametrize(
    ("minor", "message"),
    [(None, r"cuSPARSELt is not there .*pip install nvidia-cusparselt-cu13"), (7, r"0.7 has another binary interface")],
)
def test_a_library_that_is_not_there_or_too_old(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minor: int | None, message: str
) -> None:
    other = tmp_path / "libcusparseLt.so.0"
    if minor is not None:
        _compile(other, f"-DEMULATED_MINOR={minor}", _EMULATOR / "cusparselt.cc")
    monkeypatch.setenv("QCOMPILE_CUSPARSELT", str(other))
    fresh = shutil.copy(library, tmp_path / "linear_24.so")
    with pytest.raises(AssertionError, match=message):
        _call(ctypes.CDLL(str(fresh)), linear24(), operands(linear24(), (16,), 16, 32))
