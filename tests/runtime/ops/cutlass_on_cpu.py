"""CUTLASS's kernels for Ampere on a machine without a GPU, thread by thread.

CUTLASS is plain C++ but for some PTX and launches. In a copy of its headers plain C++ (`cutlass_emulator/device.h`)
takes the place of those that our kernels use; all else of it, and our own sources, are compiled as they are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from qcompile.runtime.ops.places import SOURCES

_EMULATOR = Path(__file__).parent / "cutlass_emulator"
_GUARDED = r"#if defined\(\w+\)(?:(?!#endif).)*#endif"
"""PTX, and what stands for it on a device that does not know it."""
_REPLACED: dict[str, list[tuple[str, str]]] = {
    "cutlass.h": [(r"#if defined\(__CUDA_ARCH__\)", "#if 1")],
    "kernel_launch.h": [(r"<<<[^;]*?>>>", "")],
    "gemm/device/gemm_universal_base.h": [(r"<<<[^;]*?>>>", "")],
    "arch/memory.h": [
        (
            r"template <[^<>]*>\s*struct global_load;.*(?=\} // namespace arch)",
            """
            template <class Access, int bytes, CacheOperation::Kind cache = CacheOperation::Always>
            struct global_load {
              global_load(Access& to, void const* from, bool wanted) { emulator::copy(&to, from, bytes, wanted); }
            };
            template <class Access, int bytes>
            struct global_store {
              global_store(Access const& from, void* to, bool wanted) { emulator::copy(to, &from, bytes, wanted); }
            };
            template <int bytes>
            void shared_load(void*, uint32_t);
            template <int bytes>
            void shared_store(uint32_t, void const*);
            """,
        )
    ],
    "arch/memory_sm75.h": [
        (
            rf"(ldsm<layout::RowMajor, (\d)>(?:(?!#if).)*){_GUARDED}",
            r"\1 emulator::load_matrices<\2>(reinterpret_cast<unsigned*>(&D), ptr);",
        )
    ],
    "arch/mma_sm80.h": [
        (
            r"(gemm::GemmShape<16,8,32>,\s*32,\s*int8_t,\s*layout::RowMajor,\s*int8_t,\s*layout::ColumnMajor,\s*int,"
            rf"\s*layout::RowMajor,\s*OpMultiplyAddSaturate>(?:(?!#if).)*){_GUARDED}",
            r"\1 emulator::multiply<int8_t, int64_t>((int*)&d, &a, &b, (int const*)&c);",
        )
    ],
    "arch/mma_sm89.h": [
        (
            r"(gemm::GemmShape<16, 8, 32>,\s*32,\s*cutlass::float_e4m3_t,\s*layout::RowMajor,\s*cutlass::float_e4m3_t,"
            rf"\s*layout::ColumnMajor,\s*float,(?:(?!#if).)*){_GUARDED}",
            r"\1 emulator::multiply<emulator::E4M3, double>((float*)&d, &a, &b, (float const*)&c);",
        )
    ],
    "barrier.h": [
        (
            r"(static int ld_acquire\(int \*ptr\)\s*\{).*?return state;",
            r"\1 static int asked; if (++asked % 10000000 == 0) emulator::wait_in_vain(); return *ptr;",
        )
    ],
    "functional.h": [(rf"(struct atomic_add\s*\{{(?:(?!#if).)*){_GUARDED}", r"\1 *ptr = *ptr + data;")],
    "epilogue/warp/tile_iterator_tensor_op_mixed.h": [
        (r"arch::cutlass_get_smem_pointer\(ptr\)", "0"),
        (r'asm volatile\(\s*"[^"]*st\.shared\.v2\.u32[^"]*"[^;]*\);', "memcpy((char*)ptr + offset_in_bytes, data, 8);"),
    ],
}


def build(cutlass: Path, cuda: Path, folder: Path, *, code: str, tile: str, warp: str, stages: int) -> Path:
    """A program that runs one configuration of a linear layer; `cutlass_emulator/linear_sm80.cc` says how to call it.

    Args:
        cutlass: CUTLASS's folder of headers, `cuda` CUDA's.
        code: the C++ type of the operands' codes.
        tile: rows, columns and depth of a thread block's tile, `warp` of a warp's.
    """
    for part in ("cutlass", "cute"):
        shutil.copytree(cutlass / part, folder / part)
    for name, changes in _REPLACED.items():
        path = folder / "cutlass" / name
        text = path.read_text()
        for pattern, ours in changes:
            text, count = re.subn(pattern, ours, text, flags=re.DOTALL)
            assert count > 0, f"{name} of CUTLASS is not what it was: {pattern}"
        path.write_text(text)
    program = folder / "linear_sm80"
    shape = [f"-DCODE={code}", f"-DTILE={tile}", f"-DWARP={warp}", f"-DSTAGES={stages}"]
    includes = [folder, SOURCES / "native" / "cuda", SOURCES / "native", cuda, cuda / "cccl"]
    command = [
        *("g++", "-std=c++17", "-O1", "-w", "-fpermissive", "-ffp-contract=off", "-DNDEBUG", *shape),
        *(f"-I{path}" for path in includes),
        *("-include", str(_EMULATOR / "device.h"), str(_EMULATOR / "linear_sm80.cc"), "-o", str(program)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program
