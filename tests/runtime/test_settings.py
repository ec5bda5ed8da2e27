"""The settings of a session become options of its providers."""

from __future__ import annotations

import pytest

from qcompile.errors import UsageError
from qcompile.runtime import tensorrt_rtx
from qcompile.runtime.providers import CPU, CUDA, TENSORRT, chain
from qcompile.runtime.settings import Settings

EVERYTHING = Settings(device=1, stream=4096, memory_limit=1 << 30)
ARENA = {"gpu_mem_limit": str(1 << 30), "arena_extend_strategy": "kSameAsRequested"}


def test_the_cpu_has_no_options() -> None:
    assert EVERYTHING.provider_options(CPU) == {}


def test_cuda() -> None:
    assert EVERYTHING.provider_options(CUDA) == {"device_id": "1", "user_compute_stream": "4096"} | ARENA
    assert Settings().provider_options(CUDA) == {"device_id": "0"}


def test_tensorrt_and_cuda_share_the_stream() -> None:
    (first, engines), (second, rest) = chain(TENSORRT, EVERYTHING.provider_options(TENSORRT))
    assert (first, second) == (TENSORRT, CUDA)
    assert engines["user_compute_stream"] == rest["user_compute_stream"] == "4096"
    assert engines["device_id"] == rest["device_id"] == "1"
    assert not ARENA.keys() & engines.keys()
    assert rest == EVERYTHING.provider_options(CUDA)


def test_the_plugin_has_no_arena() -> None:
    assert EVERYTHING.provider_options(tensorrt_rtx.NAME) == {"device_id": "1", "user_compute_stream": "4096"}


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"memory_limit": 0}, {"device": -1}])
def test_numbers_that_mean_nothing(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Settings(**wrong)  # type: ignore[arg-type]
