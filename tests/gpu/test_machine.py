"""The harness sees what it is there to see."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.compiler.operators import quantize_rows
from tests.gpu.machine import Machine
from tests.gpu.memory import GUARD, NumpyMemory
from tests.operators.running import model_of


def test_a_write_past_the_end_is_seen() -> None:
    memory = NumpyMemory(3)
    memory.write(b"abc", 0xFF)
    assert memory.take(0xFF) == b"abc"
    memory._bytes[GUARD + 3] = 0
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
    session = Machine("body", None).session(model_of(quantize_rows(), {"x": [2, 8]}).SerializeToString())
    with pytest.raises(AssertionError, match="has no kernel"):
        Machine("cpu", None).demand_kernel(session, quantize_rows())


def test_a_wrong_result_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Machine.run

    def off_by_one_code(*arguments: object) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
        found = run(*arguments)  # type: ignore[arg-type]
        return found | {"x_q": found["x_q"] + np.int8(1)}

    monkeypatch.setattr(Machine, "run", off_by_one_code)
    with pytest.raises(AssertionError, match=r"x_q of \(2,\) x 1 x 8 on body"):
        Machine("body", None).check(quantize_rows(), (2,), 1, 8)
