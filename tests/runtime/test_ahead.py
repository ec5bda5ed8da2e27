"""Order, laziness and errors of work done ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from qcompile.runtime.ahead import ahead


def test_results_come_in_order_whoever_finishes_first() -> None:
    first = threading.Event()

    def work(i: int) -> int:
        if i == 0:
            assert first.wait(10)
        elif i == 1:
            first.set()
        return i * i

    assert list(ahead(work, range(7), 3)) == [0, 1, 4, 9, 16, 25, 36]


def test_no_more_items_are_taken_than_asked_for() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    results = ahead(lambda i: i, items(), 3)
    assert next(results) == 0
    assert len(taken) == 3
    results.close()  # type: ignore[attr-defined]
    assert len(taken) == 3


def test_an_error_comes_when_its_turn_comes() -> None:
    results = ahead(lambda i: 1 // i, [1, 1, 0, 1], 2)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(ahead(str, [], 4)) == []
