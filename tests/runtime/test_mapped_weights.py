"""Sessions read external weights where they lie: the answers are the same, the memory is not taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from qcompile.runtime.mapped_weights import UNPACKED, mapped, share, with_shared_weights
from qcompile.runtime.memory import _table
from qcompile.runtime.providers import CPU, open_session
from tests.large_decoder import Size, write_decoder

SIZE = Size(width=256, hidden=1024, layers=8, vocabulary=1000)
IDS = {"ids": np.arange(12)[None]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("decoder"), SIZE)


def answer(session: Any) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = session.run(None, IDS)[0]
    return found


def opened(model: Path, entries: dict[str, str]) -> tuple[Any, int]:
    """A session, and the bytes of heap and private maps that it took."""
    options = onnxruntime.SessionOptions()
    for entry, value in entries.items():
        options.add_session_config_entry(entry, value)
    before = _table(Path("/proc/self/status")).get("VmData", 0)
    session = open_session(model, options, CPU, {})
    answer(session)
    return session, _table(Path("/proc/self/status")).get("VmData", 0) - before


def test_the_answers_are_those_of_a_session_that_reads_the_file_itself(model: Path) -> None:
    expected = answer(onnxruntime.InferenceSession(str(model), providers=[CPU]))
    for entries in ({}, UNPACKED):
        found = answer(opened(model, entries)[0])
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_unpacked_weights_take_no_memory(model: Path) -> None:
    opened(model, {})  # what the first session of a process takes for good
    session, taken = opened(model, UNPACKED)
    assert taken < SIZE.bytes / 4
    assert session.shared_weights


def test_texts_packed_and_small_tensors_are_left_to_the_runtime(tmp_path: Path) -> None:
    T = onnx.TensorProto
    proto = onnx.ModelProto()
    (tmp_path / "w").write_bytes(bytes(1 << 20))
    cases = {
        "float": (T.FLOAT, 1 << 16, 4096),
        "small": (T.FLOAT, 16, 0),
        "packed": (T.INT4, 1 << 18, 0),
        "askew": (T.FLOAT, 1 << 16, 1),
        "int8": (T.INT8, 1 << 16, 1),
    }
    for name, (kind, count, offset) in cases.items():
        tensor = proto.graph.initializer.add(name=name, data_type=kind, dims=[count], data_location=T.EXTERNAL)
        for key, value in (("location", "w"), ("offset", str(offset))):
            tensor.external_data.add(key=key, value=value)
    assert len(share(proto, tmp_path, onnxruntime.SessionOptions())) == 2
    assert mapped(proto.graph.initializer[0], tmp_path).shape == (1 << 16,)


def test_a_model_in_one_file_is_opened_as_it_is(tmp_path: Path, model: Path) -> None:
    whole = tmp_path / "whole.onnx"
    onnx.save(onnx.load(model), whole)
    assert with_shared_weights(whole, onnxruntime.SessionOptions()) == (whole, [])
