"""Our CUDA kernels on a machine without a GPU: their own source, compiled as plain C++ against `emulator/`.

Of the kernels' folder all is taken as it is, but for `ptx.cuh`, whose few instructions the emulator plays.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

import qcompile.runtime.ops
from qcompile.compiler.operators import Operator
from tests.gpu.memory import NumpyMemory
from tests.operators.reference import Array

FAMILIES = ("linear_outliers", "linear_w4a16", "norm_quant", "quantize_rows")
"""Kernels that need no library of NVIDIA's, but for one product of codes, which the CPU kernel stands in for."""

_EMULATOR = Path(__file__).parent / "emulator"
_TYPES = {ir.DataType.FLOAT: 0, ir.DataType.FLOAT16: 1, ir.DataType.BFLOAT16: 2}
_CODES = {ir.DataType.INT8: 0, ir.DataType.FLOAT8E4M3FN: 1}
_POISON = 0xA5


def build(folder: Path) -> Kernels:
    """Compile the kernels into `folder`."""
    native = folder / "native"
    shutil.copytree(Path(qcompile.runtime.ops.__path__[0]) / "native", native)
    shutil.copy(_EMULATOR / "ptx.cuh", native / "cuda")
    sources = [path for family in FAMILIES for path in sorted(native.glob(f"cuda/{family}*.cu"))]
    sources.append(native / "cpu" / "linear.cc")
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
    """The kernels by the operators they carry out."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def run(
        self, operator: Operator, inputs: Mapping[str, Array], attributes: Mapping[str, int | float]
    ) -> dict[str, Array]:
        """Every output of `operator`, optional ones too, by name.

        Runs twice, with the threads in ascending and in descending order: a barrier that is missing shows in one of
        them. The bits of the two must be the same, and outputs lie between guards.

        Raises:
            AssertionError: with what the kernel, or the emulator, had to say.
        """
        shapes = _output_shapes(operator, inputs)
        sources = {name: _memory(array) for name, array in inputs.items()}
        answers = []
        for descending in (False, True):
            self._library.run_descending(ctypes.c_bool(descending))
            sinks = {name: NumpyMemory(int(np.prod(shape)) * dtype.itemsize) for name, (shape, dtype) in shapes.items()}
            for sink in sinks.values():
                sink.write(bytes([_POISON]) * sink.size, _POISON)
            self._call(operator, inputs, attributes, {**sources, **sinks})
            answers.append({name: sink.take(_POISON) for name, sink in sinks.items()})
        assert answers[0] == answers[1], "the order of the threads changes the answer"
        return {name: np.frombuffer(answers[0][name], dtype).reshape(shape) for name, (shape, dtype) in shapes.items()}

    def _call(
        self,
        operator: Operator,
        inputs: Mapping[str, Array],
        attributes: Mapping[str, int | float],
        memory: Mapping[str, NumpyMemory],
    ) -> None:
        def at(*names: str) -> list[ctypes.c_void_p]:
            return [ctypes.c_void_p(memory[name].address if name in memory else None) for name in names]

        x, k = inputs["x"], inputs["x"].shape[-1]
        m, dtype = ctypes.c_int64(x.size // k), ctypes.c_int(_TYPES[ir.DataType.from_numpy(x.dtype)])
        codes = ctypes.c_int(next((_CODES[o.dtype] for o in operator.outputs if o.name == "x_q"), -1))
        arguments: list[Any]
        if operator.name.startswith("LinearW4A16"):
            name = "linear_w4a16"
            sizes = [ctypes.c_int64(value) for value in (len(inputs["w"]), k, int(attributes["block_size"]))]
            arguments = [m, *sizes, *at("x", "w", "w_scale", "w_zero", "bias"), dtype, *at("y")]
        elif operator.name.startswith("LinearOutliers"):
            name = "linear_outliers"
            sizes = [ctypes.c_int64(value) for value in (len(inputs["w"]), k, len(inputs["columns"]))]
            activation = next((i for i, a in enumerate(("Relu", "Gelu", "Silu"), 1) if a in operator.name), 0)
            operands = at("x", "keep", "columns", "w_columns", "w", "w_scale", "bias")
            arguments = [m, *sizes, *operands, ctypes.c_int(activation), dtype, *at("y")]
        elif "NormQuant" in operator.name:
            name = "norm_quant"
            kind = [ctypes.c_float(attributes["epsilon"]), ctypes.c_bool("RMS" in operator.name), dtype, codes]
            floats = [*at("x", "skip", "gamma", "beta"), *kind]
            arguments = [m, ctypes.c_int64(k), *floats, *at("x_q", "x_scale", "y", "sum")]
        else:
            name = "quantize_rows"
            arguments = [m, ctypes.c_int64(k), *at("x"), dtype, codes, *at("x_q", "x_scale")]
        function = self._library[name]
        function.restype = ctypes.c_char_p
        error = function(*arguments)
        assert error is None, error.decode()


def _output_shapes(operator: Operator, inputs: Mapping[str, Array]) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    *leading, k = inputs["x"].shape
    sizes = {"...": leading, "K": [k], "1": [1], "N": [len(inputs.get("w", ()))]}
    return {
        operand.name: (tuple(d for letter in operand.shape for d in sizes[letter]), np.dtype(operand.dtype.numpy()))
        for operand in operator.outputs
    }


def _memory(array: Array) -> NumpyMemory:
    """`array` as ONNX Runtime holds it, 4-bit codes two a byte; NaN behind it."""
    if array.dtype in (ml_dtypes.int4, ml_dtypes.uint4):
        array = ir.tensor(array).tobytes()
    data = array if isinstance(array, bytes) else array.tobytes()
    memory = NumpyMemory(len(data))
    memory.write(data, 0xFF)
    return memory
