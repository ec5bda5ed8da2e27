"""Each test of an operator runs our CPU kernel and our CUDA kernel; its body has tests in tests/compiler/operators.

`pytest tests/gpu -m gpu` runs the CUDA half; without a GPU that is skipped, and the reason is told. The library is
the one that `qcompile ops status` shows; where there is none it is built, with CUDA kernels if there is a GPU.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompile.errors import TargetError
from qcompile.runtime.ops.build import build
from qcompile.runtime.ops.places import find
from qcompile.runtime.ops.tools import find_tools
from tests.gpu.machine import Machine, why_not_on_gpu


@pytest.fixture(scope="session")
def library() -> Path:
    """A library of kernels."""
    place = find()
    if place is not None:
        return place.path
    try:
        tools = find_tools(cuda=not why_not_on_gpu())
    except TargetError as missing:
        pytest.skip(str(missing))
    return build(tools)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest) -> Machine:
    """Where the operator of a test runs."""
    return _with_kernels(request.param, request)


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest) -> Machine:
    """The CUDA kernels, for what the CPU kernels do not do."""
    return _with_kernels(request.param, request)


def _with_kernels(kind: str, request: pytest.FixtureRequest) -> Machine:
    if kind == "cuda" and (reason := why_not_on_gpu()):
        pytest.skip(reason)
    library: Path = request.getfixturevalue("library")
    return Machine(kind, library)
