"""The kernels of 8-bit linear layers for Ampere and Ada, CUTLASS and all, thread by thread on the CPU: small shapes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.operators import Operator, linear_e4m3, linear_w8a8
from qcompile.runtime.ops.tools import _cutlass, _Missing, _nvcc
from tests.operators.operands import operands
from tests.operators.reference import UNIT, Array, expected
from tests.runtime.ops.cutlass_on_cpu import build

_F32, _F16, _BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
_TYPES = {np.dtype(dtype.numpy()): i for i, dtype in enumerate((_F32, _F16, _BF16))}
_ACTIVATIONS = ("", "Relu", "Gelu", "Silu")
_VARIANTS = [
    (linear_w8a8(bias=True), ""),
    (linear_w8a8(dtype=_F16, bias=True, activation="Gelu"), "Gelu"),
    (linear_w8a8(dtype=_BF16, activation="Silu"), "Silu"),
    (linear_w8a8(bias=True, activation="Relu", requant=True), "Relu"),
    (linear_e4m3(bias=True), ""),
    (linear_e4m3(dtype=_F16, bias=True, activation="Silu"), "Silu"),
    (linear_e4m3(dtype=_BF16, activation="Relu"), "Relu"),
]
_ORDER = ("x_q", "x_scale", "w", "w_scale", "bias", "y_scale")


class _Programs:
    """The program of a family, made when first asked for: the smallest tile, as the others differ in size alone."""

    def __init__(self, cutlass: Path, cuda: Path, folder: Path) -> None:
        self._cutlass, self._cuda, self._folder = cutlass, cuda, folder
        self._made: dict[str, Path] = {}

    def of(self, operator: Operator) -> Path:
        code = "cutlass::float_e4m3_t" if "E4M3" in operator.name else "int8_t"
        if code not in self._made:
            folder = self._folder / code.replace(":", "_")
            shape = {"tile": "32,64,128", "warp": "16,32,128", "stages": 5}
            self._made[code] = build(self._cutlass, self._cuda, folder, code=code, **shape)
        return self._made[code]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> _Programs:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    try:
        (nvcc, _), cutlass = _nvcc(), _cutlass()
    except _Missing as missing:
        pytest.skip(str(missing))
    cuda = next((p / "include" for p in _toolkits(nvcc) if (p / "include/cuda_runtime.h").is_file()), None)
    if cuda is None:
        pytest.skip(f"the headers of {nvcc} are not beside it")
    return _Programs(cutlass, cuda, tmp_path_factory.mktemp("sm80"))


@pytest.mark.parametrize("variant", _VARIANTS, ids=lambda variant: variant[0].name)
@pytest.mark.parametrize(("rows", "n", "k"), [(1, 8, 16), (17, 72, 48), (33, 136, 272), (32, 64, 128)])
def test_tiles_and_their_tails(programs: _Programs, variant: tuple[Operator, str], rows: int, n: int, k: int) -> None:
    _check(programs.of(variant[0]), *variant, rows, n, k)


@pytest.mark.parametrize("variant", _VARIANTS, ids=lambda variant: variant[0].name)
@pytest.mark.parametrize(("rows", "n", "k", "processors"), [(5, 40, 2048, 7), (33, 72, 1040, 13), (70, 136, 528, 5)])
def test_blocks_that_share_tiles(
    programs: _Programs, variant: tuple[Operator, str], rows: int, n: int, k: int, processors: int
) -> None:
    _check(programs.of(variant[0]), *variant, rows, n, k, processors=processors)


@pytest.mark.parametrize("operator", [linear_w8a8(dtype=_F16, bias=True), linear_e4m3()], ids=lambda o: o.name)
def test_one_scale_for_all_rows(programs: _Programs, operator: Operator) -> None:
    _check(programs.of(operator), operator, "", 19, 40, 96, static=True)


def _check(
    program: Path,
    operator: Operator,
    activation: str,
    rows: int,
    n: int,
    k: int,
    *,
    processors: int = 4,
    static: bool = False,
) -> None:
    inputs = operands(operator, (rows,), n, k, static=static)
    right = expected(operator, inputs, {}, accumulation=UNIT)["y_q" if "y_scale" in inputs else "y"]
    found = [_run(program, operator, activation, inputs, rows, n, k, processors, d) for d in (False, True)]
    np.testing.assert_array_equal(found[0].view(np.uint8), found[1].view(np.uint8), "the order of threads matters")
    right.check(found[0], f"{operator.name} of {rows} x {n} x {k}")


def _run(
    program: Path,
    operator: Operator,
    activation: str,
    inputs: dict[str, Array],
    rows: int,
    n: int,
    k: int,
    processors: int,
    descending: bool,
) -> Array:
    dtype = np.dtype(operator.outputs[0].dtype.numpy())
    per_row = inputs["x_scale"].size > 1 or rows == 1
    flags = [_TYPES.get(dtype, 0), _ACTIVATIONS.index(activation), per_row, "bias" in inputs, "y_scale" in inputs]
    words = [str(int(value)) for value in (rows, n, k, *flags, processors, descending)]
    data = b"".join(inputs[name].tobytes() for name in _ORDER if name in inputs)
    done = subprocess.run([str(program), *words], input=data, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()[-500:]
    return np.frombuffer(done.stdout, dtype).reshape(rows, n)


def _toolkits(nvcc: Path) -> list[Path]:
    """Where CUDA's headers may lie: beside nvcc, or where a link or a wrapper of it leads."""
    return [nvcc.parent.parent, nvcc.resolve().parent.parent, *sorted(Path("/usr/local").glob("cuda*"), reverse=True)]
