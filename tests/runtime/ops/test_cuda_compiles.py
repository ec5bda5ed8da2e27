"""What nvcc makes of the kernels that no CPU can run whole: tensor-core instructions, nothing in local memory."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from qcompile.runtime.ops.places import SOURCES
from qcompile.runtime.ops.tools import _cutlass, _Missing, _nvcc

_W8A8_SM80 = """
#include "cuda/linear_sm80.cuh"
using cutlass::gemm::GemmShape;
template struct qcompile::cuda::sm80::Kernel<int8_t, qcompile::cuda::Half, GemmShape<32, 64, 128>,
                                             GemmShape<16, 32, 128>, 5>;
"""
_W8A8_SM90 = """
#include "cuda/linear_sm90.cuh"
using namespace cute;
template struct qcompile::cuda::sm90::Kernel<int8_t, int8_t, Shape<_128, _128, _128>, Shape<_2, _1, _1>,
                                             cutlass::gemm::KernelTmaWarpSpecializedPingpong>;
"""


# One kernel of each generation: all of them would take minutes.
@pytest.mark.parametrize(
    ("source", "architecture", "instructions"),
    [
        (_W8A8_SM80, "80", ["mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32.satfinite", "cp.async.cg.shared.global"]),
        (_W8A8_SM90, "90a", ["wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8", "cp.async.bulk.tensor.3d"]),
    ],
    ids=["sm80", "sm90"],
)
def test_linear_w8a8(tmp_path: Path, source: str, architecture: str, instructions: list[str]) -> None:
    report = _compile(source, architecture, tmp_path)
    ptx = (tmp_path / "unit.ptx").read_text()
    for instruction in instructions:
        assert instruction in ptx, instruction
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert set(used) == {("0", "0", "0")}, "a kernel keeps registers in local memory"


def _compile(source: str, architecture: str, folder: Path) -> str:
    """The device's part of a translation unit, with the flags of CMakeLists.txt; what ptxas says of each kernel."""
    try:
        (nvcc, _), cutlass = _nvcc(), _cutlass()
    except _Missing as missing:
        pytest.skip(str(missing))
    (folder / "unit.cu").write_text(source)
    flags = ["-std=c++17", "-O3", "-DNDEBUG", "--expt-relaxed-constexpr", "-Xptxas=-v", "--keep", "--keep-dir=."]
    code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    command = [str(nvcc), "-cubin", *flags, code, f"-I{SOURCES / 'native'}", f"-isystem={cutlass}", "unit.cu"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
