"""How the library meets the CUDA provider, on a stub of CUDA: nodes, streams, scratch memory, prepared weights.

The CUDA kernels themselves are those of the CPU here (`cuda_stub/operators.cc`).
"""

from __future__ import annotations

from typing import Any

import pytest

from qcompile.compiler.operators import catalogue
from qcompile.errors import TargetError
from tests.targets import cuda_stub

pytestmark = [pytest.mark.cuda_stub, pytest.mark.skipif(bool(cuda_stub.why_not()), reason=cuda_stub.why_not())]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `cuda_sessions` prints."""
    folder = tmp_path_factory.mktemp("cuda_sessions")
    try:
        library = cuda_stub.build_operators(folder)
    except TargetError as error:
        pytest.skip(error.what)
    return cuda_stub.run("tests.runtime.ops.cuda_sessions", folder, QCOMPILE_OPS=str(library))


def test_every_operator_runs_as_a_node_of_cuda(seen: dict[str, Any]) -> None:
    assert seen["operators"].keys() == catalogue().keys()
    assert {name: fault for name, fault in seen["operators"].items() if fault} == {}


def test_a_fault_of_a_kernel_names_the_node(seen: dict[str, Any]) -> None:
    assert "qcompile::LinearW8A8 node 'it': the CUDA kernel: the rows are too long" in seen["kernel"]


def test_an_input_that_vector_loads_cannot_read(seen: dict[str, Any]) -> None:
    assert "qcompile::QuantizeRows node 'it': x starts at an address that is no multiple of 16" in seen["unaligned"]


def test_a_weight_that_cannot_be_prepared(seen: dict[str, Any]) -> None:
    assert "qcompile::Linear24Fp16 node 'it': k is no multiple of 32" in seen["unprepared"]
    assert "qcompile::Linear24W8A8 node 'it': w is no initializer" in seen["fed weight"]


def test_a_session_finds_the_library(seen: dict[str, Any]) -> None:
    assert "1 kind of qcompile's operators run by kernels of" in seen["described"]
    assert "on CUDAExecutionProvider" in seen["described"]


def test_cuda_graphs_are_accepted(seen: dict[str, Any]) -> None:
    assert seen["captured"][0] == "CUDAExecutionProvider"


def test_autotuning_times_the_kernels(seen: dict[str, Any]) -> None:
    [forms] = seen["tuned"].values()
    assert len(forms) == 2
    assert all(time is not None and time > 0 for time in forms.values())
