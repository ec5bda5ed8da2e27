"""Which groups there are in small graphs, one for each way to write a layer, and that their dead channels may go."""

from __future__ import annotations

import re

import numpy as np
import pytest

from qcompile.compiler.graph import nodes
from qcompile.passes.transform.channels.group import Kind
from qcompile.passes.transform.channels.search import channel_groups
from tests.passes.harness import Arrays, model_of
from tests.passes.transform.channels.dead import prepared, without_dead_channels
from tests.passes.transform.graphs import GRAPHS, HEAD, normal

EXPECTED: dict[str, list[tuple[str, int]]] = {
    "pre-norm attention": [("heads", 4)],
    "post-norm attention": [("heads", 4)],
    "packed attention by Split": [("heads", 4)],
    "packed attention by Gather": [("heads", 4)],
    "grouped queries, folded into rows": [],
    "grouped queries, values repeated": [("heads", 2)],
    "attention as one operator": [("heads", 2)],
    "attention as one operator, heads apart": [("heads", 2)],
    "gated product": [("neurons", 12)],
    "gated product, linear branch first": [("neurons", 12)],
    "norm written out": [],
    "root mean square norm written out": [],
    "root mean square norm": [],
    "simplified norm with skip": [],
    "norm with skip": [],
    "two linear layers": [("neurons", 12)],
    "tied weights": [],
    "residual of linear layers": [("neurons", 8)],
    "convolutions": [("filters", 6)],
    "convolutions around a depthwise one": [("filters", 6)],
    "grouped and transposed convolutions": [],
    "convolution, mean, matrix": [("filters", 6)],
    "half of the channels": [("neurons", 4), ("neurons", 8)],
}


@pytest.mark.parametrize("name", GRAPHS)
def test_every_way_to_write_a_layer(name: str) -> None:
    graph = GRAPHS[name]
    model = prepared(graph.model)
    assert [(g.kind.value, g.size) for g in channel_groups(model)] == EXPECTED[name]
    without_dead_channels(model, graph.feeds, 1e-5)


FUSED: dict[str, tuple[str, Arrays, dict[str, int]]] = {
    "MultiHeadAttention": (
        "q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv) "
        "o = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v, rows) y = MatMul (o, wo)",
        {"wq": normal(8, 16), "wk": normal(8, 16), "wv": normal(8, 16), "rows": normal(48), "wo": normal(16, 8)},
        {"num_heads": 2},
    ),
    "Attention": (
        "o = com.microsoft.Attention <num_heads = 4> (x, w, rows) y = MatMul (o, wo)",
        {"w": normal(8, 48), "rows": normal(48), "wo": normal(16, 8)},
        {"num_heads": 2},
    ),
    "GroupQueryAttention": (
        "q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv) "
        "o = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, k, v, , , seen, total) "
        "y = MatMul (o, wo)",
        {"wq": normal(8, 32), "wk": normal(8, 16), "wv": normal(8, 16), "wo": normal(32, 8)},
        {"num_heads": 2, "kv_num_heads": 1},
    ),
    "GroupQueryAttention, packed": (
        "p = MatMul (x, w) "
        "o = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (p, , , , , seen, total) "
        "y = MatMul (o, wo)",
        {"w": normal(8, 64), "wo": normal(32, 8)},
        {"num_heads": 2, "kv_num_heads": 1},
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_attention_as_a_contributed_operator(name: str) -> None:
    body, weights, expected = FUSED[name]
    constants = {"seen": np.array([2, 2], np.int32), "total": np.array(3, np.int32)}
    used = weights | {n: a for n, a in constants.items() if n in body}
    model = prepared(model_of(f"{HEAD} g (float[2,3,8] x) => (float[2,3,8] y) {{ {body} }}", used))
    groups = channel_groups(model)
    assert [g.kind for g in groups] == [Kind.HEADS]
    smaller = without_dead_channels(model, {"x": normal(2, 3, 8)}, 1e-5)
    node = next(n for n in nodes(smaller) if n.domain == "com.microsoft")
    assert {name: node.attributes[name].as_int() for name in expected} == expected


WEIGHTS: Arrays = {
    "w": normal(8, 4, 1, 1),
    "w2": normal(5, 8, 1, 1),
    "w12": normal(12, 4, 1, 1),
    "back12": normal(5, 12, 1, 1),
    "w3": normal(5, 3, 1, 1),
    "cd": normal(4, 8),
    "de": normal(8, 5),
    "g": normal(8),
    "b": normal(8, seed=1),
    "g2": normal(8, 1, 1),
    "b2": normal(8, 1, 1, seed=1),
    "ones": np.ones(4, np.float32),
    "zeros": np.zeros(4, np.float32),
    "groups": np.array([0, 4, -1]),
    "halves": np.array([0, 2, -1, 4, 4]),
    "image": np.array([0, 8, 4, 4]),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "wide": np.array([1, 8, 2, 2]),
    "sizes": np.array([1, 8, 7, 7]),
    "w40": normal(40, 4, 1, 1),
    "filters": np.array([5, 8, 1, 1]),
    "twice": np.array([1, 1, 2, 2]),
}

IMAGES = {
    "squares of depth": (
        "h = Conv (x, w12) d = DepthToSpace <blocksize = 2> (h) e = Relu (d) s = SpaceToDepth <blocksize = 2> (e) "
        "y = Conv (s, back12)",
        3,
    ),
    "squares of depth, the other way": (
        'h = Conv (x, w12) d = DepthToSpace <blocksize = 2, mode = "CRD"> (h) y = Conv (d, w3)',
        3,
    ),
    "norm of groups": ("h = Conv (x, w) n = GroupNormalization <num_groups = 4> (h, g, b) y = Conv (n, w2)", 4),
    "norm of groups, written out": (
        "h = Conv (x, w) r = Reshape (h, groups) i = InstanceNormalization (r, ones, zeros) "
        "u = Reshape (i, image) m = Mul (u, g2) n = Add (m, b2) y = Conv (n, w2)",
        4,
    ),
    "made larger": (
        'h = Conv (x, w) p = Pad <mode = "edge"> (h, pads) r = Resize <mode = "nearest"> (p, , scales) '
        "y = Conv (r, w2)",
        8,
    ),
    "made as large as": (
        'h = Conv (x, w) r = Resize <mode = "linear"> (h, , , sizes) y = Conv (r, w2)',
        8,
    ),
    "repeated": (
        "h = Conv (x, w) m = GlobalAveragePool (h) e = Expand (m, wide) t = Tile (e, twice) y = Conv (t, w2)",
        8,
    ),
    "shuffled channels": (
        "h = Conv (x, w) r = Reshape (h, halves) t = Transpose <perm = [0, 2, 1, 3, 4]> (r) s = Reshape (t, image) "
        "y = Conv (s, w2)",
        4,
    ),
    "sums by letters": (
        'h = Einsum <equation = "bchw,cd->bdhw"> (x, cd) r = Relu (h) y = Einsum <equation = "bdhw,de->behw"> (r, de)',
        8,
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_operators_on_images(name: str) -> None:
    body, size = IMAGES[name]
    used = {n: a for n, a in WEIGHTS.items() if re.search(rf", {n}[,)]", body)}
    model = prepared(model_of(f"{HEAD} g (float[1,4,4,4] x) => (float[N,5,H,W] y) {{ {body} }}", used))
    assert [g.size for g in channel_groups(model)] == [size]
    without_dead_channels(model, {"x": normal(1, 4, 4, 4)}, 1e-5)


FROZEN_IMAGES = {
    "a norm over what a matrix writes": """h = MatMul (x, cd) n = GroupNormalization <num_groups = 2> (h, ones, zeros)
        m = MatMul (n, de) y = Transpose <perm = [0, 3, 1, 2]> (m)""",
    "places of what is largest": """h = Conv (x, w) p, i = MaxPool <kernel_shape = [2, 2]> (h) f = Cast <to = 1> (i)
        s = Add (p, f) y = Conv (s, w2)""",
    "summed over by what is computed": """h = Conv (x, w) m = GlobalAveragePool (x) k = Conv (m, w40)
        r = Reshape (k, filters) s = Conv (h, r) t = Conv (h, w2) y = Add (s, t)""",
}


@pytest.mark.parametrize("name", FROZEN_IMAGES)
def test_what_stays_of_images(name: str) -> None:
    body = FROZEN_IMAGES[name]
    used = {n: a for n, a in WEIGHTS.items() if re.search(rf", {n}[,)]", body)}
    model = prepared(model_of(f"{HEAD} g (float[1,4,4,4] x) => (float[N,5,H,W] y) {{ {body} }}", used))
    assert channel_groups(model) == []
