"""Small graphs with places for a scale, one for each family."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.passes.harness import Arrays, model_of

HEAD = '<ir_version: 11, opset_import: ["": 23, "com.microsoft": 1]>'


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def integers(*values: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, np.int64)


WEIGHTS: Arrays = {
    "w": normal(8, 8),
    "w2": normal(8, 8, seed=1),
    "w3": normal(8, 8, seed=2),
    "w4": normal(8, 8, seed=3),
    "kv": normal(8, 4),
    "packed": normal(8, 24),
    "wide": normal(8, 12),
    "gate": normal(8, 12, seed=1),
    "down": normal(12, 8),
    "b": normal(8),
    "bias": normal(8, seed=1),
    "bw": normal(12),
    "b4": normal(4),
    "b24": normal(24),
    "g": np.abs(normal(8)) + np.float32(0.2),
    "eps": np.array(1e-5, np.float32),
    "two": np.array(2, np.float32),
    "half": np.array(0.5, np.float32),
    "one": np.array(1, np.float32),
    "last": integers(-1),
    "heads": integers(0, -1, 4, 2),
    "kv_heads": integers(0, -1, 2, 2),
    "merged": integers(0, -1, 8),
    "grouped": integers(0, 2, -1, 2),
    "ungrouped": integers(0, 4, -1, 2),
    "qkv": integers(0, -1, 3, 4, 2),
    "first": np.array(0),
    "second": np.array(1),
    "third": np.array(2),
    "thirds": integers(8, 8, 8),
    "repeated": integers(1, 1, 2, 1, 1),
    "axis2": integers(2),
    "c1": normal(6, 4, 3, 3),
    "c1b": normal(6),
    "dw": normal(6, 1, 3, 3),
    "c2": normal(5, 6, 1, 1),
    "cg": normal(6, 3, 1, 1),
    "ct": normal(6, 2, 2, 2),
    "slope": np.abs(normal(6, 1, 1)),
    "fc": normal(6, 7),
    "fct": normal(7, 6),
}

_SPLIT_HEADS = """{0}_r = Reshape ({0}, heads) {0}_t = Transpose <perm = [0, 2, 1, 3]> ({0}_r)"""
_MERGE = """o_t = Transpose <perm = [0, 2, 1, 3]> (o_h) o_in = Reshape (o_t, merged)"""
_PROBABILITIES = (
    """k_tt = Transpose <perm = [0, 1, 3, 2]> (k_t) scores = MatMul (q_t, k_tt) p = Softmax <axis = -1> (scores)"""
)


def _heads(*names: str) -> str:
    return " ".join(_SPLIT_HEADS.format(n) for n in names)


@dataclass(frozen=True)
class Graph:
    """A graph with its sites: (family, number of scales) in order."""

    body: str
    sites: list[tuple[str, int]]
    x: str = "float[B,S,8] x"
    y: str = "float[B,S,N] y"
    shape: tuple[int, ...] = (2, 3, 8)
    known: str = ""

    @property
    def model(self) -> ir.Model:
        used = {n: a for n, a in WEIGHTS.items() if re.search(rf"[(, ]{n}[,)]", self.body)}
        return model_of(f"{HEAD} g ({self.x}) => ({self.y}) {self.known} {{ {self.body} }}", used)

    @property
    def feeds(self) -> Arrays:
        return {"x": normal(*self.shape, seed=9)}


_ATTENTION = (
    f"q = MatMul (n, w) k = MatMul (n, w2) v0 = MatMul (n, w3) "
    f"v = Add (v0, b) {_heads('q', 'k', 'v')} {_PROBABILITIES} "
    f"o_h = MatMul (p, v_t) {_MERGE} o = MatMul (o_in, w4) "
)

GRAPHS: dict[str, Graph] = {
    "pre-norm attention": Graph(
        f"n = LayerNormalization (x, g, b) {_ATTENTION} y = Add (x, o)", [("norm", 8), ("attention value", 8)]
    ),
    "post-norm attention": Graph(
        f"n = LayerNormalization (x, g, b) {_ATTENTION} r = Add (n, o) y = LayerNormalization (r, g, b)",
        [("attention value", 8)],
    ),
    "packed attention by Split": Graph(
        f"n = LayerNormalization (x, g) a0 = MatMul (n, packed) a = Add (a0, b24) q, k, "
        f"v = Split <axis = 2> (a, thirds) "
        f"{_heads('q', 'k', 'v')} {_PROBABILITIES} o_h = MatMul (p, v_t) {_MERGE} y = MatMul (o_in, w4)",
        [("norm", 8), ("attention value", 8)],
    ),
    "packed attention by Gather": Graph(
        f"a0 = MatMul (x, packed) a = Add (b24, a0) a5 = Reshape (a, qkv) "
        f"at = Transpose <perm = [2, 0, 3, 1, 4]> (a5) "
        f"q_t = Gather (at, first) k_t = Gather (at, second) v_t = Gather (at, third) "
        f"{_PROBABILITIES} o_h = MatMul (p, v_t) {_MERGE} y = MatMul (o_in, w4)",
        [("attention value", 8)],
    ),
    "grouped queries, folded into rows": Graph(
        f"""q = MatMul (x, w) {_SPLIT_HEADS.format("q")} k = MatMul (x, kv) k_r = Reshape (k, kv_heads)
        k_t = Transpose <perm = [0, 2, 1, 3]> (k_r) v = MatMul (x, kv) v_r = Reshape (v, kv_heads)
        v_t = Transpose <perm = [0, 2, 1, 3]> (v_r) q_g = Reshape (q_t, grouped)
        k_tt = Transpose <perm = [0, 1, 3, 2]> (k_t) scores = MatMul (q_g, k_tt) p = Softmax <axis = -1> (scores)
        o_g = MatMul (p, v_t) o_h = Reshape (o_g, ungrouped) {_MERGE} y = MatMul (o_in, w4)""",
        [("attention value", 4)],
    ),
    "grouped queries, values repeated": Graph(
        f"""q = MatMul (x, w) {_SPLIT_HEADS.format("q")} k = MatMul (x, w2) {_SPLIT_HEADS.format("k")}
        v = MatMul (x, kv) v_r = Reshape (v, kv_heads) v_s = Transpose <perm = [0, 2, 1, 3]> (v_r)
        v_u = Unsqueeze (v_s, axis2) v_e = Expand (v_u, repeated) v_t = Reshape (v_e, ungrouped)
        {_PROBABILITIES} o_h = MatMul (p, v_t) {_MERGE} y = MatMul (o_in, w4)""",
        [("attention value", 4)],
    ),
    "attention as one operator": Graph(
        "q = MatMul (x, w) k = MatMul (x, kv) v0 = MatMul (x, kv) v = Add (v0, b4) "
        "o = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v) y = MatMul (o, w4)",
        [("attention value", 4)],
    ),
    "attention as one operator, heads apart": Graph(
        f"""q = MatMul (x, w) {_SPLIT_HEADS.format("q")} k = MatMul (x, kv) k_r = Reshape (k, kv_heads)
        k_t = Transpose <perm = [0, 2, 1, 3]> (k_r) v = MatMul (x, kv) v_r = Reshape (v, kv_heads)
        v_t = Transpose <perm = [0, 2, 1, 3]> (v_r) o_h = Attention (q_t, k_t, v_t) {_MERGE} y = MatMul (o_in, w4)""",
        [("attention value", 4)],
    ),
    "gated product": Graph(
        "g1 = MatMul (x, gate) s = Sigmoid (g1) a = Mul (g1, s) u = MatMul (x, wide) h = Mul (a, u) "
        "y = MatMul (h, down)",
        [("gated product", 12)],
    ),
    "gated product, linear branch first": Graph(
        "g1 = MatMul (x, gate) a = Tanh (g1) u0 = MatMul (x, wide) u = Add (bw, u0) h = Mul (u, a) "
        "y = MatMul (h, down)",
        [("gated product", 12)],
    ),
    "norm written out": Graph(
        "m = ReduceMean <keepdims = 1> (x, last) d = Sub (x, m) sq = Pow (d, two) "
        "v = ReduceMean <keepdims = 1> (sq, last) "
        "ve = Add (v, eps) sd = Sqrt (ve) n0 = Div (d, sd) n1 = Mul (n0, g) n = Add (n1, b) q = MatMul (n, w) "
        "k = MatMul (n, w2) "
        "y = Add (q, k)",
        [("norm", 8)],
    ),
    "root mean square norm written out": Graph(
        "sq = Mul (x, x) v = ReduceMean <keepdims = 1> (sq, last) ve = Add (v, eps) sd = Sqrt (ve) "
        "r = Reciprocal (sd) "
        "n0 = Mul (x, r) n = Mul (g, n0) q = MatMul (n, w) k = MatMul (n, w2) y = Mul (q, k)",
        [("norm", 8)],
    ),
    "root mean square norm": Graph("n = RMSNormalization <axis = -1> (x, g) y = MatMul (n, w)", [("norm", 8)]),
    "simplified norm with skip": Graph(
        "n, m, i, sum = com.microsoft.SkipSimplifiedLayerNormalization (x, x, g) q = MatMul (n, w) y = Add (sum, q)",
        [("norm", 8)],
        known="<float[B,S,8] n>",
    ),
    "norm with skip": Graph(
        "n = com.microsoft.SkipLayerNormalization (x, x, g, b) y = MatMul (n, w)",
        [("norm", 8)],
        known="<float[B,S,8] n>",
    ),
    "two linear layers": Graph("h0 = MatMul (x, wide) h = Add (h0, bw) y = MatMul (h, down)", [("linear", 12)]),
    "tied weights": Graph("h0 = MatMul (x, w) h = Relu (h0) h1 = MatMul (h, w) y = Add (h1, b)", [("activation", 8)]),
    "residual of linear layers": Graph(
        "h = MatMul (x, w) k = MatMul (x, w2) r = Add (h, k) a = Relu (r) y = MatMul (a, w3)", [("activation", 8)]
    ),
    "convolutions": Graph(
        "h = Conv <pads = [1, 1, 1, 1]> (x, c1, c1b) a = Relu (h) y = Conv (a, c2)",
        [("activation", 6)],
        x="float[B,4,H,W] x",
        y="float[B,5,H,W] y",
        shape=(1, 4, 5, 5),
    ),
    "convolutions around a depthwise one": Graph(
        "h = Conv (x, c1, c1b) a = PRelu (h, slope) d = Conv <group = 6, pads = [1, 1, 1, 1]> (a, dw, c1b) "
        "e = LeakyRelu (d) "
        "m = MaxPool <kernel_shape = [2, 2]> (e) y = Conv (m, c2)",
        [("activation", 6), ("activation", 6)],
        x="float[B,4,H,W] x",
        y="float[B,5,I,J] y",
        shape=(1, 4, 7, 7),
    ),
    "grouped and transposed convolutions": Graph(
        "h = Conv (x, c1) a = Relu (h) d = Conv <group = 2> (a, cg) e = Relu (d) "
        "t = ConvTranspose <group = 3, strides = [2, 2]> (e, ct) "
        "f = Relu (t) y = Conv (f, c2)",
        [("activation", 6), ("activation", 6), ("activation", 6)],
        x="float[B,4,H,W] x",
        y="float[B,5,I,J] y",
        shape=(1, 4, 5, 5),
    ),
    "convolution, mean, matrix": Graph(
        "h = Conv (x, c1) a = Relu (h) m = GlobalAveragePool (a) f = Flatten (m) "
        "z = Gemm <transB = 1> (f, fct) y = Softmax (z)",
        [("activation", 6)],
        x="float[1,4,H,W] x",
        y="float[1,7] y",
        shape=(1, 4, 5, 5),
    ),
    "half of the channels": Graph(
        "h = MatMul (x, kv) t = MatMul (x, w) th = Tanh (t) r = Relu (h) j = Concat <axis = 2> (r, th) "
        "y = MatMul (j, down)",
        [("activation", 4)],
    ),
}
