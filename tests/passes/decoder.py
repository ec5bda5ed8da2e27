"""A small decoder with a key-value cache, made from a seed: its attention written out, or one operator."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir

from tests.passes.harness import Arrays, model_of

VOCABULARY, WIDTH, HEADS, SHARED, HEAD = 20, 16, 4, 2, 8
_KEYS = SHARED * HEAD


def decoder(layers: int = 2, seed: int = 0, *, operator: bool = False, half: bool = False) -> ir.Model:
    """input_ids, past_key_values_I_key and _value -> logits, present_I_key and _value. Without positions.

    Args:
        operator: with com.microsoft::GroupQueryAttention, which wants seqlens_k and total_sequence_length as well.
        half: in float16.
    """
    rng = np.random.default_rng(seed)
    weights: Arrays = {
        "table": rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32),
        "head": rng.standard_normal((WIDTH, VOCABULARY)).astype(np.float32) / 4,
        "heads": np.array([0, -1, HEADS, HEAD], np.int64),
        "few": np.array([0, -1, SHARED, HEAD], np.int64),
        "grouped": np.array([0, SHARED, HEADS // SHARED, -1, HEAD], np.int64),
        "all": np.array([0, HEADS, -1, HEAD], np.int64),
        "rows": np.array([0, -1, HEADS * HEAD], np.int64),
        "axis2": np.array([2], np.int64),
        "two": np.array(2, np.int64),
        "one": np.array(1, np.int64),
        "zero": np.array(0, np.int64),
        "last": np.array([-1], np.int64),
        "scale": np.array(HEAD**-0.5, np.float32),
        "hidden": np.array(-1e9, np.float32),
        "none": np.array(0, np.float32),
    }
    body = "x0 = Gather (table, input_ids)\n"
    if not operator:  # query i sees keys up to past + i
        body += """past_shape = Shape (past_key_values_0_key) past = Gather (past_shape, two)
          ids_shape = Shape (input_ids) length = Gather (ids_shape, one) total = Add (past, length)
          columns = Range (zero, total, one) rows_of = Range (past, total, one) places = Unsqueeze (rows_of, last)
          seen = LessOrEqual (columns, places) mask = Where (seen, none, hidden)\n"""
    for i in range(layers):
        shapes = {"q": (WIDTH, HEADS * HEAD), "k": (WIDTH, _KEYS), "v": (WIDTH, _KEYS), "o": (HEADS * HEAD, WIDTH)}
        for name, shape in shapes.items():
            weights[f"w_{name}{i}"] = rng.standard_normal(shape).astype(np.float32) / 4
        weights[f"w_k{i}"][:, 3] *= 8  # keys have columns that are large for every token
        body += "".join(f"{n}{i} = MatMul (x{i}, w_{n}{i})\n" for n in "qkv")
        body += _attention(i, operator) + f"o{i} = MatMul (mixed{i}, w_o{i}) x{i + 1} = Add (x{i}, o{i})\n"
    body += f"n = Tanh (x{layers}) logits = MatMul (n, head)"
    cache = [f"{i}_{part}" for i in range(layers) for part in ("key", "value")]
    inputs = ["int64[B,S] input_ids", *(f"float[B,{SHARED},P,{HEAD}] past_key_values_{c}" for c in cache)]
    inputs += ["int32[B] seqlens_k", "int32 total_sequence_length"] if operator else []
    outputs = [f"float[B,S,{VOCABULARY}] logits", *(f"float[B,{SHARED},T,{HEAD}] present_{c}" for c in cache)]
    opsets = '"": 21, "com.microsoft": 1'
    head = f"<ir_version: 10, opset_import: [{opsets}]> decoder ({', '.join(inputs)}) => ({', '.join(outputs)})"
    used = {name: array for name, array in weights.items() if re.search(rf"\b{name}\b", body)}
    text = f"{head} {{ {body} }}"
    if half:
        text = text.replace("float[", "float16[")
        used = {name: a.astype(np.float16) if a.dtype == np.float32 else a for name, a in used.items()}
    return model_of(text, used)


def feed(tokens: np.ndarray, past: Arrays, operator: bool, layers: int = 2, *, half: bool = False) -> Arrays:
    """Inputs for new `tokens` [length] behind a cache, empty at first, by the names of the inputs."""
    empty = np.zeros((1, SHARED, 0, HEAD), np.float16 if half else np.float32)
    names = [f"past_key_values_{i}_{part}" for i in range(layers) for part in ("key", "value")]
    found: Arrays = {"input_ids": tokens[None]} | {name: past.get(name, empty) for name in names}
    if operator:
        total = found[names[0]].shape[2] + len(tokens)
        found |= {"seqlens_k": np.array([total - 1], np.int32), "total_sequence_length": np.array(total, np.int32)}
    return found


def _attention(i: int, operator: bool) -> str:
    past, present = f"past_key_values_{i}", f"present_{i}"
    if operator:
        return (
            f"mixed{i}, {present}_key, {present}_value = com.microsoft.GroupQueryAttention "
            f"<num_heads = {HEADS}, kv_num_heads = {SHARED}> (q{i}, k{i}, v{i}, {past}_key, {past}_value, "
            "seqlens_k, total_sequence_length)\n"
        )
    split = "{0}_r = Reshape ({0}, {1}) {0}_t = Transpose <perm = [0, 2, 1, 3]> ({0}_r) "
    return (
        split.format(f"q{i}", "heads")
        + split.format(f"k{i}", "few")
        + split.format(f"v{i}", "few")
        + f"{present}_key = Concat <axis = 2> ({past}_key, k{i}_t) "
        f"{present}_value = Concat <axis = -2> ({past}_value, v{i}_t) "
        f"q{i}_g = Reshape (q{i}_t, grouped) keys{i} = Unsqueeze ({present}_key, axis2) "
        f"values{i} = Unsqueeze ({present}_value, axis2) kt{i} = Transpose <perm = [0, 1, 2, 4, 3]> (keys{i}) "
        f"dots{i} = MatMul (q{i}_g, kt{i}) scaled{i} = Mul (dots{i}, scale) scores{i} = Add (scaled{i}, mask) "
        f"p{i} = Softmax <axis = -1> (scores{i}) m{i} = MatMul (p{i}, values{i}) f{i} = Reshape (m{i}, all) "
        f"b{i} = Transpose <perm = [0, 2, 1, 3]> (f{i}) mixed{i} = Reshape (b{i}, rows)\n"
    )
