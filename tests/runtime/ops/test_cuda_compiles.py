"""What nvcc makes of the kernels that no CPU can run: tensor-core instructions, no local memory, no host work."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from qcompile.runtime.ops.places import SOURCES
from qcompile.runtime.ops.tools import _cutlass, _Missing, _nvcc

_NATIVE = SOURCES / "native"
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


@dataclass(frozen=True)
class _Compiled:
    ptx: str
    report: str
    """What ptxas says of each kernel."""
    calls: frozenset[str]
    """The functions of the CUDA runtime that the host's part calls."""


# One kernel of each generation: all of them would take minutes.
@pytest.mark.parametrize(
    ("source", "architecture", "instructions"),
    [
        (_W8A8_SM80, "80", ["mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32", "cp.async.cg.shared.global"]),
        (_W8A8_SM90, "90a", ["wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8", "cp.async.bulk.tensor.2d"]),
    ],
    ids=["sm80", "sm90"],
)
def test_linear_w8a8(tmp_path: Path, source: str, architecture: str, instructions: list[str]) -> None:
    compiled = _compile(source, architecture, tmp_path)
    for instruction in instructions:
        assert instruction in compiled.ptx
    _assert_no_local_memory(compiled)
    forbidden = {call for call in compiled.calls if re.search("Malloc|Free|Synchronize|Memcpy", call)}
    assert not forbidden, f"a launch must not call {sorted(forbidden)}"


@pytest.mark.parametrize(
    ("source", "instructions"),
    [
        ("linear_w4a16_decode", ["mma.sync.aligned.m16n8k16.row.col.f32.bf16", "ld.global.cs.v4.u32"]),
        ("linear_w4a16_tile", ["mma.sync.aligned.m16n8k16", "cp.async.cg.shared.global", "ld.shared.v4.u32"]),
        ("quantize_rows", ["ld.global.v4.u32", "st.global.v4.u16", "redux.sync.max.u32", "cvt.rn.satfinite.e4m3x2"]),
        ("norm_quant", ["ld.global.v4.u32", "st.global.v4.u16", "redux.sync.max.u32", "cvt.rn.satfinite.e4m3x2"]),
    ],
)
def test_own_kernels(tmp_path: Path, source: str, instructions: list[str]) -> None:
    compiled = _compile(f'#include "cuda/{source}.cu"', "90a", tmp_path, with_cutlass=False)
    for instruction in instructions:
        assert instruction in compiled.ptx
    _assert_no_local_memory(compiled)


def _assert_no_local_memory(compiled: _Compiled) -> None:
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", compiled.report)
    assert used
    assert set(used) == {("0", "0", "0")}, "a kernel keeps registers in local memory"


def _compile(source: str, architecture: str, folder: Path, *, with_cutlass: bool = True) -> _Compiled:
    """One translation unit for one architecture, with the flags of CMakeLists.txt; skips where a tool is missing."""
    try:
        nvcc, _ = _nvcc()
        includes = [f"-I{_NATIVE}", *([f"-isystem={_cutlass()}"] if with_cutlass else [])]
    except _Missing as missing:
        pytest.skip(str(missing))
    if (nm := shutil.which("nm")) is None:
        pytest.skip("nm is missing (Debian: apt install binutils)")
    (folder / "unit.cu").write_text(source)
    flags = ["-std=c++17", "-O3", "-DNDEBUG", "--expt-relaxed-constexpr", "-Xptxas=-v", "--keep", "--keep-dir=."]
    code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    command = [str(nvcc), *flags, code, *includes, "-c", "unit.cu", "-o", "unit.o"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    symbols = subprocess.run([nm, "-u", "unit.o"], cwd=folder, capture_output=True, text=True, check=True).stdout
    ptx = (folder / "unit.ptx").read_text()
    return _Compiled(ptx, done.stdout + done.stderr, frozenset(re.findall(r"\bcuda\w+", symbols)))
