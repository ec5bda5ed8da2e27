"""A small decoder of Llama's kind, made from a seed: RMS norms written out, shared keys and values, gated layers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tests.passes.harness import Arrays, model_of

WIDTH, HEADS, SHARED, HEAD, HIDDEN = 32, 4, 2, 8, 48
_KEYS = SHARED * HEAD

_NORM = """s{0} = Pow ({1}, two) m{0} = ReduceMean (s{0}, last) e{0} = Add (m{0}, eps) r{0} = Sqrt (e{0})
  u{0} = Div ({1}, r{0}) n{0} = Mul (u{0}, gamma{0})"""
_SPLIT = "{0}_r = Reshape ({0}, {1}) {0}_t = Transpose <perm = [0, 2, 1, 3]> ({0}_r)"
_SHARE = "{0}_u = Unsqueeze ({0}_t, axis2) {0}_c = Concat <axis = 2> ({0}_u, {0}_u) {0}_s = Reshape ({0}_c, all_heads)"


def matrices(width: int = WIDTH, keys: int = _KEYS, hidden: int = HIDDEN) -> dict[str, tuple[int, int]]:
    """The weights of one layer: the letter or word in their names, and their shapes [K, N]."""
    shapes = {"q": width, "k": keys, "v": keys, "o": width, "gate": hidden, "up": hidden}
    return {name: (width, columns) for name, columns in shapes.items()} | {"down": (hidden, width)}


def constants(heads: int = HEADS, head: int = HEAD) -> Arrays:
    """What all layers read."""
    return {
        "two": np.array(2, np.float32),
        "eps": np.array(1e-5, np.float32),
        "last": np.array([-1], np.int64),
        "axis2": np.array([2], np.int64),
        "heads": np.array([0, -1, heads, head], np.int64),
        "few_heads": np.array([0, -1, heads // 2, head], np.int64),
        "all_heads": np.array([0, heads, -1, head], np.int64),
        "rows": np.array([0, -1, heads * head], np.int64),
    }


def layer(i: int, x: str, y: str) -> str:
    """Layer `i` as ONNX text, from value `x` to value `y`; two heads share keys and values."""
    steps = [
        _NORM.format(f"a{i}", x),
        *(f"{n}{i} = MatMul (na{i}, w_{n}{i})" for n in "qkv"),
        _SPLIT.format(f"q{i}", "heads"),
        *(_SPLIT.format(f"{n}{i}", "few_heads") + " " + _SHARE.format(f"{n}{i}") for n in "kv"),
        f"kt{i} = Transpose <perm = [0, 1, 3, 2]> (k{i}_s) dots{i} = MatMul (q{i}_t, kt{i})",
        f"p{i} = Softmax <axis = -1> (dots{i}) mix{i} = MatMul (p{i}, v{i}_s)",
        f"back{i} = Transpose <perm = [0, 2, 1, 3]> (mix{i}) flat{i} = Reshape (back{i}, rows)",
        f"o{i} = MatMul (flat{i}, w_o{i}) h{i} = Add ({x}, o{i})",
        _NORM.format(f"f{i}", f"h{i}"),
        *(f"{n}{i} = MatMul (nf{i}, w_{n}{i})" for n in ("gate", "up")),
        f"sig{i} = Sigmoid (gate{i}) act{i} = Mul (gate{i}, sig{i}) gated{i} = Mul (act{i}, up{i})",
        f"down{i} = MatMul (gated{i}, w_down{i}) {y} = Add (h{i}, down{i})",
    ]
    return "\n".join(steps) + "\n"


def llama(layers: int = 2, seed: int = 0) -> ir.Model:
    """x: float [B, S, WIDTH] -> y of the same shape."""
    rng = np.random.default_rng(seed)
    weights = constants()
    for i in range(layers):
        for name, shape in matrices().items():
            weights[f"w_{name}{i}"] = rng.standard_normal(shape).astype(np.float32) / 6
        for norm in ("a", "f"):
            weights[f"gamma{norm}{i}"] = rng.uniform(0.5, 1.5, WIDTH).astype(np.float32)
    values = ["x", *(f"y{i}" for i in range(layers - 1)), "y"]
    body = "".join(layer(i, values[i], values[i + 1]) for i in range(layers))
    text = (
        f'<ir_version: 10, opset_import: ["": 20]> llama (float[B,S,{WIDTH}] x) => (float[B,S,{WIDTH}] y) {{ {body} }}'
    )
    return model_of(text, weights)
