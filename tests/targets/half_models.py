"""Small models as exporters write them, for half precision: an encoder, a decoder, a network of convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from tests.passes.harness import Arrays, model_of
from tests.passes.int8 import head, normal

_ENCODER = """g (int64[N,S] ids, int64[N,S] mask) => (float[N,S,16] y) {
  e = Gather (table, ids) h = LayerNormalization <axis = -1> (e, g, b)
  m = Cast <to = 1> (mask) u = Unsqueeze (m, axes) i = Sub (one, u) penalty = Mul (i, lowest)
  q = MatMul (h, wq) k = MatMul (h, wk) v = MatMul (h, wv) t = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, t)
  d = Div (s, four) a = Add (d, penalty) p = Softmax <axis = -1> (a) c = MatMul (p, v) r = Add (c, h)
  f = MatMul (r, wf) z = Div (f, root) x = Erf (z) w = Add (x, one) j = Mul (f, w) l = Mul (j, half)
  o = MatMul (l, wo) n = Add (o, r) y = LayerNormalization <axis = -1> (n, g, b)
}"""

_DECODER = """g (int64[N,S] ids, int64[N,S] at) => (float[N,S,9] y) {
  h = Gather (table, ids) q2 = Pow (h, two) q3 = ReduceMean <axes = [-1]> (q2) q4 = Add (q3, tiny) q5 = Sqrt (q4)
  q6 = Div (one, q5) q7 = Mul (h, q6) n = Mul (q7, g)
  p = Cast <to = 1> (at) pc = Unsqueeze (p, axes) angle = MatMul (pc, frequency) cos = Cos (angle) sin = Sin (angle)
  q = MatMul (n, wq) k = MatMul (n, wk) v = MatMul (n, wv)
  qa, qb = Split <axis = -1> (q) qn = Neg (qb) qr = Concat <axis = -1> (qn, qa) qc = Mul (q, cos) qs = Mul (qr, sin)
  qq = Add (qc, qs)
  ka, kb = Split <axis = -1> (k) kn = Neg (kb) kr = Concat <axis = -1> (kn, ka) kc = Mul (k, cos) ks = Mul (kr, sin)
  kk = Add (kc, ks)
  t = Transpose <perm = [0, 2, 1]> (kk) s = MatMul (qq, t) d = Div (s, four) c = Softmax <axis = -1> (d)
  o = MatMul (c, v) r = Add (o, h) u = MatMul (r, wf) sg = Sigmoid (u) sw = Mul (u, sg) w = MatMul (sw, wo)
  f = Add (w, r) y = MatMul (f, out)
}"""

_CONVOLUTIONS = """g (float[N,3,16,16] x) => (float[N,5] y) {
  a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w0, b0) r = Clip (a, zero, six)
  d = Conv <group = 8, pads = [1, 1, 1, 1]> (r, w1, b0) e = HardSwish (d) f = Conv (e, w2) s = Add (f, r)
  g1 = GlobalAveragePool (s) g2 = Conv (g1, w2) g3 = HardSigmoid (g2) m = Mul (s, g3)
  u = Resize <mode = "nearest"> (m, , scales) p = GlobalAveragePool (u) v = Flatten (p) l = Gemm (v, w3, b3)
  y = Softmax <axis = -1> (l)
}"""

_WEIGHTS: dict[str, np.ndarray[Any, Any]] = {
    "table": normal(9, 16), "g": np.abs(normal(16)), "b": normal(16), "axes": np.array([1]), "one": np.float32(1),
    "lowest": np.finfo(np.float32).min, "four": np.float32(4), "root": np.float32(2**0.5), "half": np.float32(0.5),
    **{name: normal(16, 16, seed=i) / 4 for i, name in enumerate(("wq", "wk", "wv", "wf", "wo"))},
    "two": np.float32(2), "tiny": np.float32(1e-6), "frequency": np.tile(np.float32(10.0 ** -np.arange(8)), 2)[None],
    "out": normal(16, 9), "zero": np.float32(0), "six": np.float32(6), "w0": normal(8, 3, 3, 3) / 4, "b0": normal(8),
    "w1": normal(8, 1, 3, 3) / 3, "w2": normal(8, 8, 1, 1) / 3, "w3": normal(8, 5), "b3": normal(5),
    "scales": np.float32([1, 1, 2, 2]),
}  # fmt: skip

_IDS = np.array([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])

MODELS: dict[str, tuple[str, Arrays]] = {
    "encoder": (_ENCODER, {"ids": _IDS, "mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])}),
    "decoder": (_DECODER, {"ids": _IDS, "at": np.array([[0, 1, 2, 3, 4], [3000, 3001, 3002, 3003, 3004]])}),
    "convolutions": (_CONVOLUTIONS, {"x": normal(2, 3, 16, 16)}),
}
"""The text and a sample of each."""


def half_model(name: str) -> onnx.ModelProto:
    """The float model called `name`."""
    text, _ = MODELS[name]
    words = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
    weights = {n: np.asarray(w) for n, w in _WEIGHTS.items() if n in words}
    if name == "decoder":
        weights["axes"] = np.array([2])
    return ir.to_proto(model_of(head() + text, weights))
