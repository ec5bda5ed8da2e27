"""Decoders of a few kilobytes whose answers are known, and a tokenizer of one token a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.passes.harness import Arrays, model_of

WORDS = [*"abcdefghijklmnopqrstuvwxyz", "<s>", "?"]
WIDTH = 8

_CACHED = f"""<ir_version: 10, opset_import: ["": 20]> decoder (
  int64[batch,length] input_ids, int64[batch,total] attention_mask, int64[batch,length] position_ids,
  KIND[batch,1,past,{WIDTH}] "past_key_values.0.key"
) => (float[batch,length,{len(WORDS)}] logits, KIND[batch,1,total,{WIDTH}] "present.0.key") {{
  word = Gather (words, input_ids) place = Gather (places, position_ids) new = Add (word, place)
  exact = Unsqueeze (new, one) head = CODE
  "present.0.key" = Concat <axis = 2> ("past_key_values.0.key", head) seen = DECODE
  counts = Cast <to = 1> (attention_mask) column = Unsqueeze (counts, ends) kept = Mul (seen, column)
  sums = CumSum (kept, two) shape = Shape (input_ids) length = Gather (shape, one) back = Neg (length)
  last = Slice (sums, back, far, two1) rows = Squeeze (last, one) logits = MatMul (rows, w)
}}"""
_EXACT = {"KIND": "float", "DECODE": 'Identity ("present.0.key")', "CODE": "Identity (exact)"}
_CODES = {
    "KIND": "int8",
    "DECODE": 'DequantizeLinear ("present.0.key", step, zero)',
    "CODE": "QuantizeLinear (exact, step, zero)",
}
_PLAIN = f"""<ir_version: 10, opset_import: ["": 20]> bigrams (int64[batch,length] input_ids)
  => (float[batch,length,{len(WORDS)}] logits) {{ logits = Gather (table, input_ids) }}"""


def cached_decoder(path: Path, scale: float = 1.0, seed: int = 0, codes: bool = False) -> Path:
    """What comes next depends on the sum of all words so far and on their places; with a cache of one head.

    With `codes` the cache holds int8.
    """
    text, rng = _CACHED, np.random.default_rng(seed)
    for word, meaning in (_CODES if codes else _EXACT).items():
        text = text.replace(word, meaning)
    weights: Arrays = {
        "words": rng.standard_normal((len(WORDS), WIDTH)).astype(np.float32),
        "places": rng.standard_normal((1024, WIDTH)).astype(np.float32) / 4,
        "w": (rng.standard_normal((WIDTH, len(WORDS))) * scale).astype(np.float32),
        "one": np.array([1], np.int64),
        "two": np.array(2, np.int64),
        "two1": np.array([2], np.int64),
        "ends": np.array([1, 3], np.int64),
        "far": np.array([2**31], np.int64),
    }
    grid: Arrays = {"step": np.array(1 / 32, np.float32), "zero": np.array(0, np.int8)}
    return _saved(model_of(text, weights | (grid if codes else {})), path)


def bigram_decoder(path: Path, table: np.ndarray[Any, Any]) -> Path:
    """logits = table[token]; without a cache."""
    return _saved(model_of(_PLAIN, {"table": table.astype(np.float32)}), path)


def word_tokenizer(path: Path, start: bool = False) -> Path:
    """The letters a to z as tokens; with `start`, <s> before each text, as language models often have it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.enable_truncation(4)
    made.enable_padding(length=4)
    if start:
        made.add_special_tokens(["<s>"])
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", len(WORDS) - 2)])
    made.save(str(path))
    return path


def letters(count: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS[:26], count))


def ids_of(text: str) -> np.ndarray[Any, Any]:
    return np.array([WORDS.index(word) for word in text.split()])


def _saved(model: ir.Model, path: Path) -> Path:
    ir.save(model, path)
    return path
