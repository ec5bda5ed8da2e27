"""Removing channels: what stays computes what it did, and all sizes fit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.compiler.targets import target_named
from qcompile.errors import PassError
from qcompile.passes.prepare.merge_linear import MergeLinear
from qcompile.passes.transform.channels.group import Kind
from qcompile.passes.transform.channels.remove import remove
from qcompile.passes.transform.channels.search import channel_groups
from tests.passes.decoder import VOCABULARY, WIDTH, decoder, feed
from tests.passes.harness import NAMED, context, model_of, outputs, run
from tests.passes.llama import HEAD, HIDDEN, llama
from tests.passes.transform.channels.dead import prepared, whole, without_dead_channels


def test_layers_of_a_decoder() -> None:
    model = prepared(llama())
    groups = channel_groups(model)
    assert [(g.kind, g.size) for g in groups] == [(Kind.HEADS, 2), (Kind.NEURONS, HIDDEN)] * 2
    x = np.random.default_rng(0).standard_normal((2, 5, 32)).astype(np.float32)
    smaller = without_dead_channels(model, {"x": x}, 1e-5)
    left = channel_groups(smaller)  # of values that one head holds, columns can go
    assert [(g.kind, g.size) for g in left] == [(Kind.NEURONS, HEAD), (Kind.NEURONS, HIDDEN // 2)] * 2


@pytest.mark.parametrize("operator", [False, True])
def test_a_cache_keeps_its_heads_and_queries_go_from_each_group(operator: bool) -> None:
    model = prepared(decoder(operator=operator))
    assert [(g.kind, g.size) for g in channel_groups(model)] == [(Kind.HEADS, 2)] * 2
    without_dead_channels(model, feed(np.array([3, 1, 4]), {}, operator), 1e-5)


CHAIN = """<ir_version: 10, opset_import: ["": 20]> chain (float[N,4,6,6] x) => (float[N,5] y) {
  a = Conv <pads = [1,1,1,1]> (x, w1, b1) b = Relu (a)
  c = Conv <group = 8, pads = [1,1,1,1]> (b, dw, dwb) d = Clip (c, zero, six)
  e = Conv (d, w2) f = Conv (b, w3) g = Add (e, f) h = GlobalAveragePool (g) i = Flatten (h)
  y = Gemm <transB = 1> (i, fc, fcb)
}"""


def chain() -> ir.Model:
    weights = {
        "w1": whole(8, 4, 3, 3),
        "b1": whole(8),
        "dw": whole(8, 1, 3, 3),
        "dwb": whole(8),
        "w2": whole(6, 8, 1, 1),
        "w3": whole(6, 8, 1, 1, seed=1),
        "fc": whole(5, 6),
        "fcb": whole(5),
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
    }
    return prepared(model_of(CHAIN, weights))


def test_filters_of_a_chain_of_convolutions() -> None:
    model = chain()
    groups = channel_groups(model)
    assert [(g.kind, g.size) for g in groups] == [(Kind.FILTERS, 8), (Kind.FILTERS, 6)]
    without_dead_channels(model, {"x": whole(2, 4, 6, 6)})


def test_something_stays() -> None:
    model = chain()
    group = channel_groups(model)[0]
    before = ir.to_proto(model).SerializeToString()
    with pytest.raises(PassError, match="every channel"):
        remove(model, {group: range(group.size)}, "test")
    assert ir.to_proto(model).SerializeToString() == before


def test_the_width_of_a_model_goes_only_when_asked_for() -> None:
    model = prepared(decoder())
    assert Kind.WIDTH not in [g.kind for g in channel_groups(model)]
    [group] = [g for g in channel_groups(model, width=True) if g.kind is Kind.WIDTH]
    assert group.size == WIDTH
    remove(model, {group: range(6)}, "test")
    feeds = feed(np.array([3, 1, 4]), {}, False)
    assert outputs(model, feeds)[0].shape == (1, 3, VOCABULARY)
    assert sorted({len(p.channels) for p in channel_groups(model, width=True)[0].parts}) == [WIDTH - 6]


def test_merged_projections_lose_whole_heads() -> None:
    model = prepared(llama())
    run(model, *NAMED, MergeLinear(), on=context(target_named("cuda")))
    assert sum(n.op_type == "Split" for n in model.graph) >= 2
    heads = channel_groups(model)[0]
    assert (heads.kind, heads.size, len(list(heads.writers))) == (Kind.HEADS, 2, 1)
    x = np.random.default_rng(0).standard_normal((2, 5, 32)).astype(np.float32)
    without_dead_channels(model, {"x": x}, 1e-5)


FROZEN = {
    "read in a body": """h = MatMul (x, w) r = ReduceSum <keepdims = 0> (x) t = Greater (r, zero)
        e = If (t) <then_branch = a () => (float[2,4] p) { p = Relu (h) },
                    else_branch = b () => (float[2,4] q) { q = Tanh (h) }> y = MatMul (e, w2)""",
    "no rule": "h = MatMul (x, w) e = CumSum (h, along) y = MatMul (e, w2)",
    "softmax": "h = MatMul (x, w) e = Softmax (h) y = MatMul (e, w2)",
    "returned": "y = MatMul (x, w)",
    "compared with itself": """h = MatMul (x, w) t = Transpose (h) s = MatMul (h, t) p = Softmax (s) m = MatMul (p, h)
        y = MatMul (m, w2)""",
    "the sum of them": "h = MatMul (x, w) e = ReduceSum (h, last) y = MatMul (h, w2) z = Add (y, e)",
    "the sum of them, by letters": """h = MatMul (x, w) e = Einsum <equation = "bc,d->bd"> (h, row) y = MatMul (h, w2)
        z = Add (y, e)""",
    "the largest of them": "h = MatMul (x, w) e = ReduceMax (h, last) y = MatMul (h, w2) z = Add (y, e)",
}


@pytest.mark.parametrize("name", FROZEN)
def test_what_stays(name: str) -> None:
    body = FROZEN[name]
    result = "z" if "z =" in body else "y"
    weights = {"w": whole(4, 4), "w2": whole(4, 4, seed=1), "zero": np.array(0, np.float32)}
    weights |= {"last": np.array([-1]), "axis": np.array([1]), "row": whole(4), "along": np.array(1)}
    used = {n: a for n, a in weights.items() if f", {n})" in body}
    text = f'<ir_version: 10, opset_import: ["": 20]> g (float[2,4] x) => (float[2,4] {result}) {{ {body} }}'
    assert channel_groups(prepared(model_of(text, used))) == []
