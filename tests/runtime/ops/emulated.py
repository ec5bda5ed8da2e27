"""Our CUDA kernels on a machine without a GPU: their own source, compiled as plain C++ against `emulator/`.

Of the kernels' folder all is taken as it is, but for `ptx.cuh`, whose three instructions the emulator plays.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

import qcompile.runtime.ops
from tests.gpu.machine import NumpyMemory

Array = npt.NDArray[Any]
Type = ir.DataType
FAMILIES = ("linear_w4a16", "norm_quant", "quantize_rows")
"""Kernels that need no library of NVIDIA's."""

_EMULATOR = Path(__file__).parent / "emulator"
_TYPES = {Type.FLOAT: ctypes.c_int(0), Type.FLOAT16: ctypes.c_int(1), Type.BFLOAT16: ctypes.c_int(2)}
_CODES = {Type.INT8: ctypes.c_int(0), Type.FLOAT8E4M3FN: ctypes.c_int(1)}
_POISON = 0xA5


def build(folder: Path) -> Kernels:
    """Compile the kernels into `folder`."""
    native = folder / "native"
    shutil.copytree(Path(qcompile.runtime.ops.__path__[0]) / "native", native)
    shutil.copy(_EMULATOR / "ptx.cuh", native / "cuda")
    sources = [path for family in FAMILIES for path in sorted(native.glob(f"cuda/{family}*.cu"))]
    library = folder / "kernels.so"
    command = [
        *("g++", "-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"),
        *("-Wno-unknown-pragmas", "-x", "c++"),
        *(f"-I{path}" for path in (_EMULATOR, native, native / "cuda")),
        *(*map(str, sources), str(_EMULATOR / "kernels.cc"), "-o", str(library)),
    ]
    subprocess.run(command, check=True)
    return Kernels(ctypes.CDLL(str(library)))


class Kernels:
    """One method a family; arrays of ml_dtypes stand for bfloat16 and E4M3.

    Every call runs twice, with the threads in ascending and in descending order: a barrier that is missing shows in
    one of them. The bits of the two must be the same.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def quantize_rows(self, x: Array, codes: Type) -> list[Array]:
        """x_q and x_scale of x[M, K]."""
        outputs = ((x.shape, codes), ((x.shape[0], 1), Type.FLOAT))
        return self._run("quantize_rows", (*x.shape, x, _type(x), _CODES[codes]), outputs)

    def norm_quant(
        self, x: Array, skip: Array | None, gamma: Array, beta: Array | None, epsilon: float, codes: Type
    ) -> list[Array]:
        """x_q, x_scale, y and sum; RMS norm without `beta`."""
        kind = (ctypes.c_float(epsilon), ctypes.c_bool(beta is None), _type(x), _CODES[codes])
        floats = (x.shape, Type.from_numpy(x.dtype))
        outputs = ((x.shape, codes), ((x.shape[0], 1), Type.FLOAT), floats, floats)
        return self._run("norm_quant", (*x.shape, x, skip, gamma, beta, *kind), outputs)

    def linear_w4a16(
        self, x: Array, w: Array, w_scale: Array, w_zero: Array | None, bias: Array | None, block: int
    ) -> Array:
        """y[M, N] of x[M, K] and packed codes w[N, K/2]."""
        (m, k), n = x.shape, len(w)
        inputs = (m, n, k, block, x, w, w_scale, w_zero, bias, _type(x))
        return self._run("linear_w4a16", inputs, [((m, n), Type.from_numpy(x.dtype))])[0]

    def _run(self, name: str, inputs: Sequence[Any], outputs: Sequence[tuple[tuple[int, ...], Type]]) -> list[Array]:
        function = self._library[name]
        function.restype = ctypes.c_char_p
        kept = [_input(value) for value in inputs]
        answers = []
        for descending in (False, True):
            self._library.run_descending(ctypes.c_bool(descending))
            sinks = [NumpyMemory(int(np.prod(shape)) * dtype.numpy().itemsize) for shape, dtype in outputs]
            for sink in sinks:
                sink.write(bytes([_POISON]) * sink.size, _POISON)
            error = function(*(_argument(value) for value in (*kept, *sinks)))
            assert error is None, error.decode()
            answers.append([sink.take(_POISON) for sink in sinks])
        assert answers[0] == answers[1], "the order of the threads changes the answer"
        return [
            np.frombuffer(data, dtype.numpy()).reshape(shape)
            for data, (shape, dtype) in zip(answers[0], outputs, strict=True)
        ]


def _type(x: Array) -> ctypes.c_int:
    return _TYPES[Type.from_numpy(x.dtype)]


def _input(value: Any) -> Any:
    """Arrays at an address as the runtime aligns them, NaN behind them."""
    if not isinstance(value, np.ndarray):
        return value
    memory = NumpyMemory(value.nbytes)
    memory.write(value.tobytes(), 0xFF)
    return memory


def _argument(value: Any) -> Any:
    if isinstance(value, NumpyMemory):
        return ctypes.c_void_p(value.address)
    return ctypes.c_int64(value) if isinstance(value, int) else value
