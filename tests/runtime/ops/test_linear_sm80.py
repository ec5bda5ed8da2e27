"""LinearW8A8's kernels for Ampere, CUTLASS and all, thread by thread on the CPU: small shapes, every path."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.operators import Operator, linear_w8a8
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
]
_ORDER = ("x_q", "x_scale", "w", "w_scale", "bias", "y_scale")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest tile: what differs in the others is CUTLASS's."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    try:
        (nvcc, _), cutlass = _nvcc(), _cutlass()
    except _Missing as missing:
        pytest.skip(str(missing))
    cuda = next((p / "include" for p in _toolkits(nvcc) if (p / "include/cuda_runtime.h").is_file()), None)
    if cuda is None:
        pytest.skip(f"the headers of {nvcc} are not beside it")
    folder = tmp_path_factory.mktemp("sm80")
    return build(cutlass, cuda, folder, tile="32,64,128", warp="16,32,128", stages=5)


@pytest.mark.parametrize("variant", _VARIANTS, ids=lambda variant: variant[0].name)
@pytest.mark.parametrize(("rows", "n", "k"), [(1, 8, 16), (17, 72, 48), (33, 136, 272), (32, 64, 128)])
def test_tiles_and_their_tails(program: Path, variant: tuple[Operator, str], rows: int, n: int, k: int) -> None:
    _check(program, *variant, rows, n, k)


@pytest.mark.parametrize("variant", _VARIANTS, ids=lambda variant: variant[0].name)
@pytest.mark.parametrize(("rows", "n", "k", "processors"), [(5, 40, 2048, 7), (33, 72, 1040, 13), (70, 136, 528, 5)])
def test_blocks_that_share_tiles(
    program: Path, variant: tuple[Operator, str], rows: int, n: int, k: int, processors: int
) -> None:
    _check(program, *variant, rows, n, k, processors=processors)


def test_one_scale_for_all_rows(program: Path) -> None:
    _check(program, linear_w8a8(dtype=_F16, bias=True), "", 19, 40, 96, static=True)


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
