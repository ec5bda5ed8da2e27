"""Streams: where a handle is found, and who waits for whom."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from qcompile.errors import UsageError
from qcompile.runtime.streams import Stream, handle_of


def test_handles() -> None:
    assert handle_of(None) is None
    assert handle_of(7) == 7
    assert handle_of(SimpleNamespace(cuda_stream=8)) == 8
    assert handle_of(SimpleNamespace(ptr=9)) == 9

    class OfProtocol:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 10

    assert handle_of(OfProtocol()) == 10
    for wrong in ("0", -1, True, object()):
        with pytest.raises(UsageError, match="is not a CUDA stream"):
            handle_of(wrong)


class FakeStream:
    """A stream that notes what it is told."""

    def __init__(self, handle: int, told: list[str]) -> None:
        self.cuda_stream, self._told = handle, told

    def wait_stream(self, other: FakeStream) -> None:
        self._told.append(f"{self.cuda_stream} waits for {other.cuda_stream}")

    def synchronize(self) -> None:
        self._told.append(f"host waits for {self.cuda_stream}")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What streams of a torch with a GPU are told, whose current stream is 1."""
    notes: list[str] = []
    cuda = SimpleNamespace(
        current_stream=lambda device: FakeStream(1, notes),
        ExternalStream=lambda handle, device: FakeStream(handle, notes),
    )
    monkeypatch.setitem(sys.modules, "torch.cuda", cuda)
    return notes


class Tensor:
    """A torch tensor on a GPU, as far as streams look at it."""

    device = SimpleNamespace(type="cuda", index=0)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


Tensor.__module__ = "torch"


def around(stream: Stream, array: Any, told: list[str], alone: bool = True) -> Any:
    with stream.ordered(array, alone) as options:
        told.append("run")
    return options


def test_streams_wait_for_each_other_and_the_host_for_none(told: list[str]) -> None:
    options = around(Stream(5), Tensor(), told)
    assert told == ["5 waits for 1", "run", "1 waits for 5"]
    assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"


def test_on_the_stream_of_torch_nobody_waits(told: list[str]) -> None:
    assert around(Stream(1), Tensor(), told) is not None
    assert told == ["run"]


@pytest.mark.parametrize(("stream", "alone"), [(Stream(), True), (Stream(5), False)])
def test_the_host_waits_where_the_order_is_not_known(told: list[str], stream: Stream, alone: bool) -> None:
    assert around(stream, Tensor(), told, alone) is None
    assert told == ["host waits for 1", "run"]


def test_nobody_waits_for_arrays_on_the_host(told: list[str]) -> None:
    import numpy as np

    assert around(Stream(5), np.zeros(1), told) is None
    assert told == ["run"]
