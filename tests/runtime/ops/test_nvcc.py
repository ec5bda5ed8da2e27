"""nvcc takes every source of the kernels, host's part and device's."""

from __future__ import annotations

import contextlib
import re
import subprocess
from pathlib import Path

import pytest

from qcompile.runtime.ops.places import SOURCES
from qcompile.runtime.ops.tools import _cusparselt, _Missing, _nvcc

_NATIVE = SOURCES / "native"
_GENERATION = re.compile("_sm[0-9]+$")
"""Sources for one generation of tensor cores: these take minutes, and have a test of their own."""


@pytest.mark.parametrize("name", sorted(p.name for p in _NATIVE.glob("cuda/*.cu") if not _GENERATION.search(p.stem)))
def test_nvcc_takes_it(tmp_path: Path, name: str) -> None:
    try:
        nvcc, _ = _nvcc()
    except _Missing as missing:
        pytest.skip(str(missing))
    headers = []
    with contextlib.suppress(_Missing):
        headers = [f"-isystem={_cusparselt()}"]
    quick = ["-gencode=arch=compute_80,code=compute_80", "-Xcicc", "-O0"]  # to PTX, as it stands
    command = [str(nvcc), "-std=c++17", "--expt-relaxed-constexpr", *quick, f"-I{_NATIVE}", *headers, "-c"]
    command += [str(_NATIVE / "cuda" / name), "-o", str(tmp_path / "unit.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
