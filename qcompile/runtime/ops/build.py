"""Building the library of kernels, out of tree, into the user's cache."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from qcompile.errors import TargetError
from qcompile.runtime.ops.library import open_library
from qcompile.runtime.ops.places import FILE, SOURCES, cache, sources_digest
from qcompile.runtime.ops.tools import Tools

Step = Callable[[int, int], None]
"""Called with the steps that are done, and how many there are."""

_SHOWN = 12  # lines of a failed build
_STEP = re.compile(r"^\[\s*(\d+)(?:/(\d+)|%)\]")


def build(tools: Tools, jobs: int | None = None, step: Step = lambda _done, _all: None) -> Path:
    """Build the library and give its path; one that was built from the same sources for the same runtime is kept.

    Args:
        jobs: compilers at work at the same time; left out, one a core.

    Raises:
        TargetError: a compiler refuses; its lines are shown, all of them in the log that the hint names.
    """
    target = cache() / _key(tools) / FILE
    with contextlib.suppress(TargetError):
        return open_library(target).path
    cache().mkdir(parents=True, exist_ok=True)
    log = cache() / "build.log"
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".building-") as folder, log.open("w") as file:
        configure = [str(tools.cmake), "-S", str(SOURCES), "-B", folder, *_options(tools)]
        compile_ = [str(tools.cmake), "--build", folder, "--parallel", str(jobs or os.cpu_count() or 1)]
        for command in (configure, compile_):
            lines = _run(command, file.write, step)
            if lines is not None:
                raise TargetError("building the library failed:\n" + "\n".join(lines), hint=_advice(lines, log))
        made = Path(folder) / FILE
        open_library(made)
        target.parent.mkdir(exist_ok=True)
        os.replace(made, target)
    return target


def _key(tools: Tools) -> str:
    return f"{sources_digest()}-onnxruntime{tools.api}" + (f"-cuda{tools.cuda.version}" if tools.cuda else "")


def _options(tools: Tools) -> list[str]:
    settings = {
        "CMAKE_MAKE_PROGRAM": tools.make,
        "CMAKE_CXX_COMPILER": tools.compiler,
        "ONNXRUNTIME_INCLUDE": tools.headers,
        "QCOMPILE_CUDA": "ON" if tools.cuda else "OFF",
    }
    if tools.cuda:
        settings |= {
            "CMAKE_CUDA_COMPILER": tools.cuda.nvcc,
            "CUTLASS_INCLUDE": tools.cuda.cutlass,
            "CUSPARSELT_INCLUDE": tools.cuda.cusparselt,
        }
    return ["-G", tools.generator, *(f"-D{name}={value}" for name, value in settings.items())]


def _run(command: list[str], write: Callable[[str], object], step: Step) -> list[str] | None:
    """Run a command; None when it went well, otherwise the lines that say why not."""
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                write(line)
                lines.append(line.rstrip())
                if at := _STEP.match(line):
                    step(int(at[1]), int(at[2] or 100))
        except BaseException:
            process.terminate()
            raise
    if process.returncode == 0:
        return None
    errors = [line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)]
    return (errors or lines)[:_SHOWN]


def _advice(lines: list[str], log: Path) -> str:
    if any("unsupported GNU version" in line or "unsupported clang version" in line for line in lines):
        return "this nvcc refuses the host's compiler: name an older one, CUDAHOSTCXX=g++-13"
    return f"all lines are in {log}"
