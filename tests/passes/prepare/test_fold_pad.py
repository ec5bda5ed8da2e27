from __future__ import annotations

import numpy as np
import pytest

from qcompile.passes.prepare.fold_pad import FoldPad
from tests.passes.harness import NAMED, check_pass, model_of, run

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
WEIGHTS = {
    "w": np.random.default_rng(0).standard_normal((2, 3, 3, 3)).astype(np.float32),
    "spatial": np.int64([0, 0, 0, 1, 0, 0, 2, 1]),
    "channels": np.int64([0, 1, 0, 0, 0, 0, 0, 0]),
    "negative": np.int64([0, 0, -1, 0, 0, 0, 0, 0]),
    "zero": np.float32(0),
    "one": np.float32(1),
}
FEEDS = {"x": np.random.default_rng(1).standard_normal((1, 3, 6, 6)).astype(np.float32)}


def padded(node: str) -> str:
    return f"{HEAD} g (float[1,3,6,6] x) => (float[1,C,H,W] y) {{ {node} }}"


def test_zero_padding_goes_into_the_convolution() -> None:
    text = padded("p = Pad (x, spatial) y = Conv <pads = [1, 0, 0, 1], strides = [2, 2]> (p, w)")
    model = check_pass(FoldPad(), model_of(text, WEIGHTS), FEEDS, golden="fold-pad", before=NAMED)
    [conv] = model.graph
    assert list(conv.attributes["pads"].as_ints()) == [1, 1, 2, 2]


@pytest.mark.parametrize("attributes", ["", ", pads = [0, 1, 0, 1], count_include_pad = 1"])
def test_and_into_the_pool_that_counts_it(attributes: str) -> None:
    text = padded(f"p = Pad (x, spatial, zero) y = AveragePool <kernel_shape = [3, 4]{attributes}> (p)")
    check_pass(FoldPad(), model_of(text, WEIGHTS), FEEDS, before=NAMED)


def test_axes_given_as_input() -> None:
    text = padded("p = Pad (x, two, , axis) y = Conv (p, w)").replace('"": 17', '"": 18')
    model = model_of(text, WEIGHTS | {"two": np.int64([1, 2]), "axis": np.int64([-1])})
    check_pass(FoldPad(), model, FEEDS, before=NAMED)
    assert list(model.graph[0].attributes["pads"].as_ints()) == [0, 1, 0, 2]


@pytest.mark.parametrize(
    "node",
    [
        "p = Pad (x, spatial, one) y = Conv (p, w)",
        'p = Pad <mode = "reflect"> (x, spatial) y = Conv (p, w)',
        "p = Pad (x, negative) y = Conv (p, w)",
        "p = Pad (x, channels) y = MaxPool <kernel_shape = [1, 1]> (p)",
        'p = Pad (x, spatial) y = Conv <auto_pad = "SAME_UPPER"> (p, w)',
        "p = Pad (x, spatial) y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (p)",
        "p = Pad (x, spatial) y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (p)",
        "p = Pad (x, spatial) y = AveragePool <kernel_shape = [2, 2]> (p)",
        "p = Pad (x, spatial) k = Conv (p, w) y = Conv (p, w)",
    ],
)
def test_other_padding_stays(node: str) -> None:
    model = model_of(padded(node), WEIGHTS)
    assert not run(model, *NAMED, FoldPad())[-1].modified
