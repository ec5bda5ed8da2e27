"""Sessions that are asked for CUDA graphs, with the real CUDA provider on a stub of CUDA.

What ONNX Runtime captures and replays is counted there: two warm-up runs, a capture and a launch for the first run of a
graph, one launch for each later run, and all of it again in another thread.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.targets import cuda_stub

pytestmark = [pytest.mark.cuda_stub, pytest.mark.skipif(bool(cuda_stub.why_not()), reason=cuda_stub.why_not())]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `cuda_graph_sessions` prints."""
    found: dict[str, Any] = cuda_stub.run("tests.runtime.cuda_graph_sessions", tmp_path_factory.mktemp("cuda_graphs"))
    return found


def test_a_bucket_is_captured_once_and_then_replayed(seen: dict[str, Any]) -> None:
    captures_and_launches = seen["replayed"]
    assert captures_and_launches["first"] == [1, 1]
    assert captures_and_launches["trial"] == [1, 2]
    assert captures_and_launches["third"] == [1, 3]


def test_each_bucket_has_a_graph_and_so_has_each_thread(seen: dict[str, Any]) -> None:
    assert seen["replayed"]["other bucket"] == [2, 5]
    assert seen["replayed"]["other thread"] == [3, 8]


def test_shapes_that_are_computed_on_the_cpu_do_not_hinder_a_capture(seen: dict[str, Any]) -> None:
    """The third run captures, the fourth tries the graph, the fifth has its answer from it."""
    assert (seen["decoder"]["captures"], seen["decoder"]["launches"]) == (1, 3)
    assert ": 1 replays" in seen["decoder"]["said"]


def test_the_session_says_what_is_captured(seen: dict[str, Any]) -> None:
    assert seen["replayed"]["data"] == [
        "CUDA graph of batch 4, length 8: 2 replays, 0.0 MB",
        "CUDA graph of batch 4, length 16: 0 replays, 0.0 MB",
    ]
    for line in seen["replayed"]["data"]:
        assert line in seen["replayed"]["said"]
    assert "graph" not in seen["plain"]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("control flow", "as the model has control flow nodes which can't be supported by CUDAExecutionProvider"),
        ("not on the device", "as all compute graph nodes have not been partitioned to the CUDAExecutionProvider"),
        ("gather", "GatherND copies from memory that is gone when the graph is replayed"),
    ],
)
def test_graphs_that_cannot_be_captured_leave_a_session_that_runs(seen: dict[str, Any], kind: str, why: str) -> None:
    assert "on CUDAExecutionProvider" in seen["refused"][kind]
    assert "no CUDA graphs: " in seen["refused"][kind]
    assert why in seen["refused"][kind]
