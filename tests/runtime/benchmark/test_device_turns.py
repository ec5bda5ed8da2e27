"""Turns on a GPU, as far as a stub of CUDA shows: inputs in the device's memory, and a benchmark from end to end."""

from __future__ import annotations

from typing import Any

import pytest

from tests.frontends.decoders import cached_decoder
from tests.targets import cuda_stub

pytestmark = [pytest.mark.cuda_stub, pytest.mark.skipif(bool(cuda_stub.why_not()), reason=cuda_stub.why_not())]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("device_turns")
    decoder = cached_decoder(folder / "decoder.onnx")
    found: dict[str, Any] = cuda_stub.run("tests.runtime.benchmark.device_turns", folder, str(decoder))
    return found


@pytest.mark.parametrize(("dtype", "name"), [("float32", "float"), ("bfloat16", "bfloat16"), ("int64", "int64")])
def test_inputs_take_turns_on_the_device(seen: dict[str, Any], dtype: str, name: str) -> None:
    assert seen[dtype] == {
        "copies": 2,
        "repeats": True,
        "type": f"tensor({name})",
        "device": "cuda",
        "values": True,
    }


def test_an_error_of_the_driver_is_told(seen: dict[str, Any]) -> None:
    assert "the NVIDIA driver cannot do cuDeviceGet: there is no device" in seen["no device"]


def test_a_decoder_in_both_phases(seen: dict[str, Any]) -> None:
    found = seen["bench"]
    assert (found["provider"], found["device"], found["unit"]) == ("CUDAExecutionProvider", "no device", "tokens")
    assert set(found["products"]) == {"float32"}
    prefill, decode = found["rows"]
    assert (prefill["phase"], decode["phase"]) == ("prefill", "decode")
    assert prefill["operations"]["float32"] == 6 * decode["operations"]["float32"] > 0
    assert prefill["milliseconds"] > 0 < decode["milliseconds"]


def test_cuda_graphs_are_replayed_or_the_reason_is_told(seen: dict[str, Any]) -> None:
    before, after = seen["graphs"]
    assert after >= before + 16 > 16, "each turn has two runs to look and two to count at least"
    assert "GatherND copies from memory that is gone" in seen["no graphs"]
