"""Removing channels: what stays computes what it did, and all sizes fit."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.compiler.graph import constant
from qcompile.errors import PassError
from qcompile.passes.prepare.surgery import Names
from qcompile.passes.prepare.untie import set_constant
from qcompile.passes.transform.channels.group import ChannelGroup, Kind
from qcompile.passes.transform.channels.remove import remove
from qcompile.passes.transform.channels.search import channel_groups
from tests.passes.decoder import decoder, feed
from tests.passes.harness import NAMED, Arrays, model_of, outputs, run
from tests.passes.llama import HEAD, HIDDEN, llama


def prepared(model: ir.Model) -> ir.Model:
    run(model, *NAMED)
    return model


def silence(model: ir.Model, group: ChannelGroup, channels: list[int]) -> None:
    """Zeros wherever a weight reads `channels`: they are dead."""
    nodes = {str(n.name): n for n in model.graph}
    for part in group.readers:
        node = nodes[part.node]
        array = constant(node.inputs[part.index])
        assert array is not None
        array = array.copy()
        np.moveaxis(array, part.axis, 0)[np.isin(part.channels, channels)] = 0
        set_constant(node, part.index, array, Names(model))


def assert_dead_channels_change_nothing(model: ir.Model, feeds: Arrays, tolerance: float = 0) -> ir.Model:
    groups = channel_groups(model)
    assert groups
    dead = {g: list(range(0, g.size, 2)) for g in groups}
    for group, channels in dead.items():
        silence(model, group, channels)
    smaller = model.clone()
    remove(smaller, dead, "test")
    onnx.checker.check_model(ir.to_proto(smaller), full_check=True)
    for expected, got in zip(outputs(model, feeds), outputs(smaller, feeds), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)
    return smaller


def test_layers_of_a_decoder() -> None:
    model = prepared(llama())
    groups = channel_groups(model)
    assert [(g.kind, g.size) for g in groups] == [(Kind.HEADS, 2), (Kind.NEURONS, HIDDEN)] * 2
    x = np.random.default_rng(0).standard_normal((2, 5, 32)).astype(np.float32)
    smaller = assert_dead_channels_change_nothing(model, {"x": x}, 1e-5)
    left = channel_groups(smaller)  # of one head that is shared, columns could go
    assert [(g.kind, g.size) for g in left] == [(Kind.NEURONS, size) for size in (HEAD, HEAD, HIDDEN // 2)] * 2


def test_a_cache_keeps_its_heads_and_queries_go_from_each_group() -> None:
    model = prepared(decoder())
    assert [(g.kind, g.size) for g in channel_groups(model)] == [(Kind.HEADS, 2)] * 2
    assert_dead_channels_change_nothing(model, feed(np.array([3, 1, 4]), {}, False), 1e-5)


CHAIN = """<ir_version: 10, opset_import: ["": 20]> chain (float[N,4,6,6] x) => (float[N,5] y) {
  a = Conv <pads = [1,1,1,1]> (x, w1, b1) b = Relu (a)
  c = Conv <group = 8, pads = [1,1,1,1]> (b, dw, dwb) d = Clip (c, zero, six)
  e = Conv (d, w2) f = Conv (b, w3) g = Add (e, f) h = GlobalAveragePool (g) i = Flatten (h)
  y = Gemm <transB = 1> (i, fc, fcb)
}"""


def integers(*shape: int, seed: int = 0) -> np.ndarray:
    """Small whole numbers: sums of their products are exact in any order."""
    return np.random.default_rng([seed, *shape]).integers(-3, 4, shape).astype(np.float32)


def chain() -> ir.Model:
    weights = {
        "w1": integers(8, 4, 3, 3),
        "b1": integers(8),
        "dw": integers(8, 1, 3, 3),
        "dwb": integers(8),
        "w2": integers(6, 8, 1, 1),
        "w3": integers(6, 8, 1, 1, seed=1),
        "fc": integers(5, 6),
        "fcb": integers(5),
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
    }
    return prepared(model_of(CHAIN, weights))


def test_filters_of_a_chain_of_convolutions() -> None:
    model = chain()
    groups = channel_groups(model)
    assert [(g.kind, g.size) for g in groups] == [(Kind.FILTERS, 8), (Kind.FILTERS, 6)]
    assert_dead_channels_change_nothing(model, {"x": integers(2, 4, 6, 6)})


def test_something_stays() -> None:
    model = chain()
    group = channel_groups(model)[0]
    before = ir.to_proto(model).SerializeToString()
    with pytest.raises(PassError, match="every channel"):
        remove(model, {group: range(group.size)}, "test")
    assert ir.to_proto(model).SerializeToString() == before
