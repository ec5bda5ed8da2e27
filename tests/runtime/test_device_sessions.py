"""A session of the CUDA provider fed from the device's memory, on a stub of CUDA in a process of its own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.targets import cuda_stub

pytestmark = [pytest.mark.cuda_stub, pytest.mark.skipif(bool(cuda_stub.why_not()), reason=cuda_stub.why_not())]

RIGHT = {"devices": ["cuda"], "right": [True, True], "apart": True}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `device_sessions` prints."""
    found: dict[str, Any] = cuda_stub.run("tests.runtime.device_sessions", tmp_path_factory.mktemp("device_sessions"))
    return found


def test_results_lie_on_the_device_of_the_inputs(seen: dict[str, Any]) -> None:
    assert seen["device"] == RIGHT
    assert seen["host"] == [True, True]


def test_what_lies_on_the_host_is_read_at_each_run(seen: dict[str, Any]) -> None:
    assert seen["both"] == [True, True]


def test_what_lies_on_the_device_is_bound_once(seen: dict[str, Any]) -> None:
    assert seen["bound"] == ["x", "ids", "x", "x", "ids", "wait"]


def test_eight_threads(seen: dict[str, Any]) -> None:
    assert seen["threads"]


def test_a_cache_stays_on_the_device(seen: dict[str, Any]) -> None:
    assert seen["decoder"] == [["ndarray", "cuda"]] * 2


def test_a_stream_of_the_user(seen: dict[str, Any]) -> None:
    assert seen["stream"] == RIGHT


def test_memory(seen: dict[str, Any]) -> None:
    assert "of 65536 MiB of GPU 0 in use by everybody; opening the session took" in seen["described"]
    assert "its arena may take 1.0" in seen["limit"]
    assert seen["too small"].startswith("memory_limit=16 bytes are too few to open the model")
    assert seen["too small for a run"].startswith("memory_limit=4096 bytes are too few for this run")


def test_an_input_on_another_gpu(seen: dict[str, Any]) -> None:
    assert seen["another"] == (
        "input 'x' lies on GPU 1, the session runs on GPU 0 -> move it, or open the session with device=1"
    )


def test_a_gpu_that_is_not_there(seen: dict[str, Any]) -> None:
    assert seen["missing"] == "this machine has no GPU 3 -> they are counted from 0"


def test_inner_values_of_a_model_on_the_gpu(seen: dict[str, Any]) -> None:
    assert seen["probe"] == {"right": True, "providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]}
