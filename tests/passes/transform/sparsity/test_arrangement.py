"""Which weights stay, for every arrangement of zeros."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.compiler.linear_layers import LinearLayer, linear_layers
from qcompile.passes.transform.sparsity.arrangement import Arrangement, channels_last
from tests.passes.harness import model_of
from tests.passes.int8 import head, normal

SCORES = normal(2, 8, 16) ** 2

KINDS = ["1:4", "2:4", "4:8", "3:4", "unstructured", "rows", "columns", "2x4", "8x1"]


@pytest.mark.parametrize("text", KINDS)
@given(ratio=st.floats(0.1, 0.9))
def test_what_stays_is_arranged_and_counts_right(text: str, ratio: float) -> None:
    wanted = Arrangement.parse(text, None if ":" in text else ratio)
    kept = wanted.kept(SCORES)
    assert wanted.holds(SCORES * kept)
    blocks = SCORES[0].size // max((wanted.block[0] or 8) * (wanted.block[1] or 16), 1)
    gone = 1 - kept.mean(axis=(1, 2))
    np.testing.assert_allclose(gone, wanted.ratio if ":" in text else round(ratio * blocks) / blocks)


def test_patterns_keep_the_largest_of_each_group() -> None:
    kept = Arrangement.parse("2:4").kept(np.array([[[3.0, 1, 2, 4, 0, 0, 0, 0]]]))
    assert kept.tolist() == [[[True, False, False, True, True, True, False, False]]], "the first of equal ones"


def test_rows_compete_apart_when_asked() -> None:
    scores = np.array([[[1.0, 2, 3, 4], [10, 20, 30, 40]]])
    half = Arrangement.parse("unstructured")
    assert half.kept(scores).tolist() == [[[False] * 4, [True] * 4]]
    assert half.kept(scores, rows_apart=True).tolist() == [[[False, False, True, True]] * 2]


def test_blocks_go_by_the_sum_of_their_scores() -> None:
    scores = np.array([[[5.0, 0, 1, 1], [0, 0, 1, 1]]])
    assert Arrangement.parse("2x2").kept(scores).tolist() == [[[True, True, False, False]] * 2]
    assert Arrangement.parse("columns", 0.25).kept(scores).tolist() == [[[True, False, True, True]] * 2]
    assert Arrangement.parse("rows").kept(scores).tolist() == [[[True] * 4, [False] * 4]]


@pytest.mark.parametrize(
    ("text", "ratio", "message"),
    [
        ("4:2", None, "'4:2' is no pattern"),
        ("0:4", None, "is no pattern"),
        ("dense", None, "write 2:4, unstructured, rows, columns"),
        ("0x4", None, "'0x4' is no pattern"),
        ("2:4", 0.3, "2:4 says how many weights go; leave out the ratio"),
    ],
)
def test_what_is_no_arrangement(text: str, ratio: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arrangement.parse(text, ratio)


def convolutions() -> list[LinearLayer]:
    text = (
        head()
        + """g (float[1,8,5,5] x) => (float[1,4,3,3] a, float[1,8,5,5] b, float[1,6,5,5] c) {
        a = Conv (x, wa)  b = Conv <group = 8, pads = [1, 1, 1, 1]> (x, wb)  c = Conv <group = 2> (x, wc) }"""
    )
    weights = {"wa": normal(4, 8, 3, 3), "wb": normal(8, 1, 3, 3), "wc": normal(6, 4, 1, 1)}
    return linear_layers(model_of(text, weights))[0]


def test_patterns_of_convolutions_lie_along_channels() -> None:
    """One tap after the other, whatever their layout."""
    full, depthwise, grouped = convolutions()
    wanted = Arrangement.parse("2:4")
    assert [wanted.obstacle(layer) for layer in (full, grouped)] == ["", ""]
    assert wanted.obstacle(depthwise) == "it is a depthwise convolution"
    assert Arrangement.parse("3x1").obstacle(full) == "4 outputs and 8 inputs are no whole number of blocks"
    order = channels_last(full)
    matrix = full.matrix()[:, :, order]
    kept = wanted.kept(matrix**2)
    full.write((matrix * kept)[:, :, np.argsort(order)])
    stored = full.weight.const_value
    assert stored is not None
    taps = stored.numpy().reshape(4, 2, 4, 9)
    assert ((taps != 0).sum(axis=2) == 2).all()
