"""Which dimensions may be padded, found by running models that mind it and models that do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from qcompile.runtime.buckets import FreeDimensions
from qcompile.runtime.padding import Verdict, close, judge, padded
from tests.runtime import shaped_models as models

Array = np.ndarray[Any, Any]


def verdict(text: str, dimension: str, **sizes: int) -> Verdict:
    import onnxruntime

    session = onnxruntime.InferenceSession(models.model(text), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(names, session.run(None, dict(feed)), strict=True))

    dimensions = FreeDimensions.of({i.name: i.shape for i in session.get_inputs()})
    assert dimension in dimensions.candidates
    return judge(run, models.feed(text, **sizes), dimensions, dimension)


@pytest.mark.parametrize(
    ("text", "dimension", "outputs"),
    [
        (models.ROWS, "batch", {("y", 0)}),
        (models.MASKED_MEAN, "batch", {("y", 0)}),
        (models.MASKED_MEAN, "length", set()),
        (models.TOKEN_BY_TOKEN, "batch", {("y", 0)}),
        (models.TOKEN_BY_TOKEN, "length", {("y", 1)}),
    ],
)
def test_padding_does_no_harm(text: str, dimension: str, outputs: set[tuple[str, int]]) -> None:
    found = verdict(text, dimension, batch=5, length=7)
    assert found.why == ""
    assert found.outputs is not None
    assert set(found.outputs) == outputs


@pytest.mark.parametrize(
    ("text", "dimension", "why"),
    [
        (models.PLAIN_MEAN, "length", "what stands in the padding changes 'y'"),
        (models.MIXED_ROWS, "batch", "what stands in the padding changes 'y'"),
        (models.COUNTS_POSITIONS, "length", "the number of positions changes 'y'"),
        (models.TWICE_AS_LONG, "length", "a size that follows from it in another way"),
        (models.FIXED_ROOM, "length", "3 of 5 do not run"),
    ],
)
def test_padding_is_refused(text: str, dimension: str, why: str) -> None:
    found = verdict(text, dimension, batch=5)
    assert found.outputs is None
    assert why in found.why


def test_padded() -> None:
    x = np.arange(1, 7).reshape(2, 3)
    np.testing.assert_array_equal(padded(x, (3, 4)), [[1, 2, 3, 0], [4, 5, 6, 0], [0, 0, 0, 0]])
    assert padded(x, (2, 3)) is x


def test_close() -> None:
    right = np.array([3.0, 4.0, np.nan], np.float16)
    assert close(np.array([3.0, 4.05, np.nan]), right)
    assert not close(np.array([3.0, 4.1, np.nan]), right)
    assert not close(np.array([3.0, 4.0, 0.0]), right)
    assert close(np.zeros(2, np.float32), np.zeros(2, np.float32))
    assert not close(np.array([1, 2]), np.array([1, 3]))
