"""The harness sees what it is there to see."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.operators import quantize_rows
from tests.gpu.machine import Machine, NumpyMemory
from tests.gpu.reference import assert_codes, assert_within, two_of_four


def test_a_write_past_the_end_is_seen() -> None:
    memory = NumpyMemory(3)
    memory.write(b"abc", 0xFF)
    assert memory.take(0xFF) == b"abc"
    memory._bytes[256 + 3] = 0
    with pytest.raises(AssertionError, match="past the end"):
        memory.take(0xFF)


def test_memory_starts_where_the_runtime_would_start_it() -> None:
    assert all(NumpyMemory(size).address % 256 == 0 for size in (1, 7, 4096))


def test_an_unwritten_byte_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = NumpyMemory.take

    def forgets(self: NumpyMemory, poison: int) -> bytes:
        return taken(self, poison)[:-1] + bytes([poison])

    monkeypatch.setattr(NumpyMemory, "take", forgets)
    with pytest.raises(AssertionError, match="is not written wholly"):
        Machine("body", None).run(quantize_rows(), {"x": np.ones((2, 8), np.float32)})


def test_a_body_is_no_kernel_of_ours() -> None:
    operator = quantize_rows(dtype=ir.DataType.FLOAT16)
    session = Machine("body", None)._session(_bytes(operator), False)
    with pytest.raises(AssertionError, match="has no kernel"):
        Machine("cpu", None)._is_ours(session, operator)


def test_what_is_too_far_is_named() -> None:
    with pytest.raises(AssertionError, match=r"at \(0, 1\): 3.0 for 2"):
        assert_within(np.array([[1.0, 3.0]]), np.array([[1.0, 2.0]]), 0.5)
    with pytest.raises(AssertionError, match="nan for 2"):
        assert_within(np.array([np.nan]), np.array([2.0]), 9.0)
    assert_codes(np.array([2, -128]), np.array([2.5, -300.0]), -128, 127, 0)
    with pytest.raises(AssertionError):
        assert_codes(np.array([3]), np.array([2.4]), -128, 127, 0.05)


def test_the_pattern_keeps_at_most_two() -> None:
    rng = np.random.default_rng(0)
    w = two_of_four(rng, rng.standard_normal((8, 64)))
    kept = np.count_nonzero(w.reshape(8, 16, 4), axis=-1)
    assert kept.max() == 2
    assert kept.min() == 1


def _bytes(operator: object) -> bytes:
    from tests.gpu import machine

    model = machine._model(operator, {"x": np.ones((2, 8), np.float16)}, (), {}, ())  # type: ignore[arg-type]
    return ir.to_proto(model).SerializeToString()
