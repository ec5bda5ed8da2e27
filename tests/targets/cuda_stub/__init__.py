"""Build stub CUDA libraries for the installed onnxruntime-gpu, so that its placement can be seen without a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from qcompile.runtime.ops.places import FILE, SOURCES
from qcompile.runtime.ops.tools import find_tools

_SOURCE = Path(__file__).with_name("stub.c")
_LIBRARIES = re.compile(r"lib(?:cu|nv)[A-Za-z]+\.so\.\d+")
_FUNCTIONS = re.compile(r"^(?:__cuda|cuda|cublas|curand|cufft|cudnn|cu[A-Z])")


def why_not() -> str:
    """What is missing for building the stub, empty when nothing is."""
    if provider_library() is None:
        return "the installed ONNX Runtime has no CUDA provider"
    missing = [tool for tool in ("gcc", "nm", "readelf") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    return "" if headers() else "needs CUDA's headers (the package nvidia-cuda-runtime, or a CUDA toolkit)"


def provider_library() -> Path | None:
    """The shared library of ONNX Runtime's CUDA provider."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "capi" / "libonnxruntime_providers_cuda.so"
    return path if path.exists() else None


def headers() -> Path | None:
    """A folder that holds cuda_runtime_api.h."""
    spec = importlib.util.find_spec("nvidia")
    packages = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    places = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"]
    places += [include for package in packages for include in sorted(package.glob("*/include"))]
    return next((place for place in places if (place / "cuda_runtime_api.h").exists()), None)


def run(module: str, folder: Path, *arguments: str, **environment: str) -> Any:
    """What the program `module` prints as JSON in a process in which the stub, built in `folder`, stands in for CUDA.

    Results of operators mean nothing there, so models are compiled outside and come as files.
    """
    build(folder)
    library = provider_library()
    assert library is not None
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=Path(__file__).parents[3],
        env={**os.environ, **environment, "LD_LIBRARY_PATH": f"{folder}:{library.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def build(folder: Path) -> None:
    """Write one stub for every CUDA library that the provider links against into `folder`."""
    library, include = provider_library(), headers()
    assert library is not None
    assert include is not None
    wanted = _names(["nm", "-D", "--undefined-only", str(library)], _FUNCTIONS)
    written = set(re.findall(r"\b((?:__)?cu\w+)\(", _SOURCE.read_text()))
    rest = folder / "rest.c"
    rest.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(wanted - written)))
    needed = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    for soname in sorted({m for line in needed.splitlines() if "NEEDED" in line for m in _LIBRARIES.findall(line)}):
        script = folder / f"{soname}.map"
        script.write_text(f"{soname} {{ global: *; }};\n")
        options = ["-shared", "-fPIC", "-O1", "-w", "-fno-builtin", f"-I{include}"]
        linking = [f"-Wl,-soname,{soname}", f"-Wl,--version-script={script}"]
        subprocess.run(["gcc", *options, *linking, "-o", str(folder / soname), str(_SOURCE), str(rest)], check=True)


def build_operators(folder: Path) -> Path:
    """The library of operators as it is on CUDA, in `folder`, with the CPU's kernels in the place of CUDA's: a stub
    whose memory is the host's can run them.

    Raises:
        TargetError: a compiler or ONNX Runtime's headers are not here.
    """
    tools, include = find_tools(cuda=False), headers()
    assert include is not None
    native, library = SOURCES / "native", folder / FILE
    sources = [*native.glob("*.cc"), *native.glob("cpu/*.cc"), _SOURCE.with_name("operators.cc")]
    defined = ['-DQCOMPILE_CUDA="none"', '-DQCOMPILE_ARCHITECTURES="none"']
    included = [f"-I{path}" for path in (native, tools.headers, include)]
    options = ["-std=c++17", "-shared", "-fPIC", *defined, *included]
    subprocess.run([str(tools.compiler), *options, "-o", str(library), *map(str, sorted(sources))], check=True)
    return library


def _names(command: list[str], wanted: re.Pattern[str]) -> set[str]:
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    names = (line.split()[-1].split("@")[0] for line in lines if line.strip())
    return {name for name in names if wanted.match(name)}
