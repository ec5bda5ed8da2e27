"""Buckets: steps of sizes, the free dimensions of a model, and the bucket that a feed falls into."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.errors import UsageError
from qcompile.runtime.buckets import Buckets, FreeDimensions, rounded_up, text

ENCODER = {"input_ids": ["batch", "length"], "attention_mask": ["batch", "length"]}


def test_the_steps() -> None:
    assert sorted({rounded_up(size) for size in range(130)}) == [
        0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192,
    ]  # fmt: skip


@given(st.integers(1, 1 << 40))
def test_at_most_a_third_is_padding(size: int) -> None:
    bucket = rounded_up(size)
    assert size <= bucket
    assert rounded_up(bucket) == bucket
    assert 3 * (bucket - size) < bucket
    assert rounded_up(size + 1) >= bucket


def test_dimensions_of_an_encoder() -> None:
    dimensions = FreeDimensions.of(ENCODER)
    assert dimensions.candidates == ["batch", "length"]
    assert dimensions.batch == "batch"
    assert dimensions.masked == {"length"}
    assert dimensions.sizes({"input_ids": (2, 37), "attention_mask": (2, 37)}) == {"batch": 2, "length": 37}
    assert dimensions.sizes({"input_ids": (2, 37), "attention_mask": (2, 36)}) is None
    assert dimensions.resized({"input_ids": (2, 37), "attention_mask": (2, 37)}, {"batch": 3, "length": 48}) == {
        "input_ids": (3, 48),
        "attention_mask": (3, 48),
    }


def test_dimensions_that_nothing_rules_out() -> None:
    images = FreeDimensions.of({"pixels": ["batch", 3, "height", None]})
    assert images.candidates == ["batch"]
    assert list(images.places) == ["batch", "height", "pixels:3"]
    assert FreeDimensions.of({"a": ["n", 4], "b": [4, "n"]}).candidates == []
    assert FreeDimensions.of({"a": ["n", 4], "b": [4]}).candidates == []
    assert FreeDimensions.of({"a": ["n", "n"]}).candidates == []
    assert FreeDimensions.of({"a": [1, 4]}).places == {}


def test_the_bucket_of_a_feed() -> None:
    buckets = Buckets(FreeDimensions.of(ENCODER))
    sizes = {"batch": 5, "length": 37}
    assert buckets.of(sizes, {"batch", "length"}) == {"batch": 6, "length": 48}
    assert buckets.of(sizes, {"length"}) == {"batch": 5, "length": 48}
    assert buckets.of(sizes, ()) == sizes
    assert buckets.of({"batch": 5, "length": 0}, ()) is None
    assert Buckets(FreeDimensions.of({"a": [1, 4]})).of({}, ()) == {}


def test_given_buckets() -> None:
    given = ({"batch": 8, "length": 128}, {"batch": 1, "length": 512}, {"batch": 1, "length": 64})
    buckets = Buckets(FreeDimensions.of(ENCODER), given)
    both = {"batch", "length"}
    assert buckets.of({"batch": 1, "length": 37}, both) == {"batch": 1, "length": 64}
    assert buckets.of({"batch": 1, "length": 65}, both) == {"batch": 1, "length": 512}
    assert buckets.of({"batch": 2, "length": 65}, both) == {"batch": 8, "length": 128}
    assert buckets.of({"batch": 2, "length": 129}, both) is None
    assert buckets.of({"batch": 2, "length": 65}, {"length"}) is None
    assert buckets.of({"batch": 8, "length": 65}, {"length"}) == {"batch": 8, "length": 128}


@pytest.mark.parametrize("bucket", [{"batch": 8}, {"batch": 8, "height": 3}, {"batch": 0, "length": 3}])
def test_a_bucket_that_is_none(bucket: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="is no bucket of the model") as refused:
        Buckets(FreeDimensions.of(ENCODER), (bucket,))
    assert "batch, length" in str(refused.value)


def test_a_bucket_in_words() -> None:
    assert text({"batch": 8, "length": 128}) == "batch 8, length 128"
    assert text({}) == "the one shape there is"
