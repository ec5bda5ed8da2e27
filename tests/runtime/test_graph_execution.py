"""Runs by buckets, on the CPU: its provider takes the same calls, and captures nothing. A stand-in below remembers."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnxruntime
import pytest

from qcompile.errors import UsageError
from qcompile.runtime import graph_execution
from qcompile.runtime.buckets import rounded_up
from qcompile.runtime.cuda_graphs import Uncaptured
from qcompile.runtime.execution import HostExecution
from qcompile.runtime.graph_execution import GraphExecution
from qcompile.runtime.settings import Settings
from tests.runtime import shaped_models as models

Array = np.ndarray[Any, Any]


class Recording:
    """A session that counts runs by the number of their graph, and may fail as a graph can."""

    def __init__(self, text: str) -> None:
        self._session = onnxruntime.InferenceSession(models.model(text), providers=["CPUExecutionProvider"])
        self.graphs: list[int] = []
        self.stale = self.broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        graph = int(options.get_run_config_entry("gpu_graph_id"))
        replayed = graph in self.graphs
        self.graphs.append(graph)
        if graph >= 0 and self.broken:
            raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")
        if not (graph >= 0 and replayed and self.stale):
            self._session.run_with_iobinding(binding, options)


def executed(text: str, graphs: Any = True) -> tuple[Recording, GraphExecution]:
    session = Recording(text)
    plain = HostExecution(Uncaptured(session))
    return session, GraphExecution(session, plain, Settings(cuda_graphs=graphs), memory="cpu")


def check(execution: GraphExecution, text: str, batch: int, length: int = 5, seed: int = 0) -> None:
    feed = models.feed(text, batch, length, seed)
    right = onnxruntime.InferenceSession(models.model(text), providers=["CPUExecutionProvider"]).run(None, feed)
    found = execution.run(feed)
    np.testing.assert_allclose(found["y"], right[0], rtol=1e-5)


def lines(execution: GraphExecution) -> str:
    return "\n".join(map(str, execution.state().buckets))


def test_captured_when_seen_often_enough_and_trusted_after_a_trial() -> None:
    session, execution = executed(models.ROWS)
    assert lines(execution) == "CUDA graphs: none captured yet"
    for seed in range(6):
        check(execution, models.ROWS, 4, seed=seed)
    warm_up, plain, capture, trial, replay = -1, -1, 0, [-1, 0], 0
    assert session.graphs == [warm_up, plain, capture, *trial, replay, replay]
    assert lines(execution) == "CUDA graph of batch 4: 2 replays, 0.0 MB"


@pytest.mark.parametrize(("text", "padded"), [(models.ROWS, "batch"), (models.MASKED_MEAN, "length")])
def test_sizes_of_one_bucket_share_a_graph(text: str, padded: str) -> None:
    session, execution = executed(text)
    for seed, size in enumerate([6, 5, 5, 6, 5, 6, 5]):
        sizes = {"batch": size} if padded == "batch" else {"batch": 4, "length": size}
        check(execution, text, seed=seed, **sizes)
    assert set(session.graphs) == {-1, 0}
    assert f"{padded} is padded" in lines(execution)


def test_answers_are_cut_to_their_size() -> None:
    _, execution = executed(models.TOKEN_BY_TOKEN)
    for seed in range(8):
        batch, length = 5 + seed % 2, 9 + seed % 4
        feed = models.feed(models.TOKEN_BY_TOKEN, batch, length, seed)
        assert execution.run(feed)["y"].shape == (batch, length, 4)
        check(execution, models.TOKEN_BY_TOKEN, batch, length, seed)
    assert "batch 6, length 12: " in lines(execution)


def test_what_may_not_be_padded_is_captured_as_it_is() -> None:
    _, execution = executed(models.PLAIN_MEAN)
    for seed in range(9):
        check(execution, models.PLAIN_MEAN, 4, 5, seed)
    said = lines(execution)
    assert "length is not padded: what stands in the padding changes 'y'" in said
    assert "CUDA graph of batch 4, length 5: " in said


def test_answers_are_the_callers_to_keep() -> None:
    _, execution = executed(models.ROWS)
    feeds = [models.feed(models.ROWS, 4, seed=seed) for seed in range(8)]
    kept = [execution.run(feed)["y"] for feed in feeds]
    for feed, answer in zip(feeds, kept, strict=True):
        np.testing.assert_array_equal(answer, execution.run(feed)["y"])


def test_a_replay_that_does_not_read_its_inputs_is_found() -> None:
    session, execution = executed(models.ROWS)
    session.stale = True
    for seed in range(8):
        check(execution, models.ROWS, 4, seed=seed)
    assert lines(execution) == "no CUDA graphs any more: a replay gave another 'y' than a run"


def test_a_capture_that_fails_leaves_the_model_running() -> None:
    session, execution = executed(models.ROWS)
    session.broken = True
    for seed in range(5):
        check(execution, models.ROWS, 4, seed=seed)
    assert "no CUDA graphs any more: CUDA failure 900" in lines(execution)
    assert session.graphs.count(0) == 1


def test_a_feed_that_does_not_run_is_no_fault_of_the_graphs() -> None:
    _, execution = executed(models.FIXED_ROOM)
    for _ in range(4):
        with pytest.raises(Exception, match="Reshape"):
            execution.run(models.feed(models.FIXED_ROOM, 4, 6))
    for _ in range(5):
        check(execution, models.FIXED_ROOM, 4, 5)
    said = lines(execution)
    assert "no CUDA graph of batch 4, length 6: " in said
    assert "CUDA graph of batch 4, length 5: 1 replays" in said


def test_a_bucket_that_is_too_long_for_the_model() -> None:
    """What runs with 14 positions need not run with 16, and is captured as it is."""
    _, execution = executed(models.ROOM_FOR_14)
    for seed in range(10):
        check(execution, models.ROOM_FOR_14, 4, 14, seed)
    said = lines(execution)
    assert "length is padded" in said
    assert "no CUDA graph of batch 4, length 16: " in said
    assert "CUDA graph of batch 4, length 14: " in said


@pytest.mark.parametrize("length", [2, 31, 127])
def test_one_length_forever_has_a_bucket(length: int) -> None:
    _, execution = executed(models.MASKED_MEAN)
    for seed in range(5):
        check(execution, models.MASKED_MEAN, 1, length, seed)
    assert f"CUDA graph of batch 1, length {rounded_up(length)}: 1 replays" in lines(execution)


def test_given_buckets_are_the_only_ones() -> None:
    session, execution = executed(models.ROWS, ({"batch": 8}, {"batch": 16}))
    for batch in (5, 5, 5, 9, 9, 17, 17):
        check(execution, models.ROWS, batch)
    said = lines(execution)
    assert "CUDA graph of batch 8: 1 replays" in said
    assert "CUDA graph of batch 16: 0 replays" in said
    assert set(session.graphs) == {-1, 0, 1}
    with pytest.raises(UsageError, match="no bucket of the model"):
        executed(models.ROWS, ({"rows": 8},))


def test_graphs_and_their_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_execution, "_MOST_GRAPHS", 2)
    session, execution = executed(models.ROWS)
    for batch in (1, 2, 3):
        for _ in range(5):
            check(execution, models.ROWS, batch)
    assert set(session.graphs) == {-1, 0, 1}
    monkeypatch.setattr(graph_execution, "_MOST_BYTES", 8 * 4 * 4)
    session, execution = executed(models.ROWS)
    for batch in (4, 6):
        for _ in range(5):
            check(execution, models.ROWS, batch)
    assert set(session.graphs) == {-1, 0}
    assert "no CUDA graph of batch 6: inputs and outputs of all would take more than" in lines(execution)


def test_threads_capture_each_for_itself_and_get_their_own_answers() -> None:
    session, execution = executed(models.MASKED_MEAN)
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for seed in range(12):
                check(execution, models.MASKED_MEAN, 4, 5 + seed % 4, 100 * thread + seed)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(session.graphs) == {-1, 0, 1}, "buckets are shared"


def test_arrays_on_a_device_are_copied_by_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of torch, said to lie on a device, whose memory is the host's here."""
    torch = pytest.importorskip("torch")
    from qcompile.runtime import arrays, cuda_graphs

    _, execution = executed(models.MASKED_MEAN)
    monkeypatch.setattr(arrays, "on_device", lambda array: isinstance(array, torch.Tensor))
    monkeypatch.setattr(cuda_graphs, "wait_for", lambda array: None)
    kept = []
    for seed, length in enumerate([5, 5, 5, 6, 5, 6, 5]):
        feed = models.feed(models.MASKED_MEAN, 4, length, seed)
        answer = execution.run({name: torch.from_numpy(array) for name, array in feed.items()})["y"]
        assert isinstance(answer, torch.Tensor)
        kept.append((feed, answer))
    for feed, answer in kept:
        np.testing.assert_allclose(answer.numpy(), execution.run(feed)["y"], rtol=1e-6)
    assert "length 6: 10 replays" in lines(execution)
